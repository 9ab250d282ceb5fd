# A table is rendered from measurements and the paper's reported values; `snakemake table1` asks for one by its name.
rule render:
    input:
        metrics=metrics_of_table,
        records=records_of_table,
        reported=REPORTED,
    output:
        csv=at("tables/{table}.csv"),
        md=report(at("tables/{table}.md"), caption="../report/table.rst", category="Tables"),
        tex=at("tables/{table}.tex"),
        html=report(at("tables/{table}.html"), caption="../report/table.rst", category="Tables"),
    log:
        at("logs/tables/{table}.log"),
    benchmark:
        at("benchmarks/tables/{table}.tsv")
    conda:
        ENVIRONMENT
    params:
        settings=table_of,
        results=subpath(output.csv, ancestor=2),
        launch=launch,
    shell:
        "{params.launch} dseq-jepa tables --settings {params.settings:q} --results {params.results}"
        " --reported {input.reported} &> {log}"


for name in EXPERIMENT.tables:

    rule:
        name:
            name
        input:
            files_of([name]),


rule tables:
    input:
        files_of(EXPERIMENT.tables),
