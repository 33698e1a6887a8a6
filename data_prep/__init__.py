"""From raw text to shards: `python -m data_prep --help` lists the commands.

    commands/   one module a command, named as the command, and the options they share (arguments)
    reading/    files into documents: which inputs there are (inputs), decompression (streams), raw records (records,
                tables, json_values) in portions (chunks), their parsing (parsing, long_json), what is no document
                (bad), documents in memory (documents), line numbers of whole files (places)
    tokens/     documents into shards: encoding (encoding, fast, cutting), the job (job), the shards of a unit
                (unit_writer), the finished folder (assembly), token files of other formats (sources, sinks)
    overlap/    what documents have in common: runs of words (words), signatures and bands (signatures), both on disk
                (fingerprints), which documents go (duplicates), evaluation files (evaluation), and a corpus without
                some of its documents (filtering)
    work/       who does the work (executors), what is done of it (stages), where it goes (outputs), how far it is
                (progress)
    measure/    the figures of the documentation, for the developers' command bench

Imports run one way: reading <- work <- {tokens, overlap} <- commands <- measure; bench imports what it measures with.
"""
