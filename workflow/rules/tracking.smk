# The journals are the truth; this mirrors them into MLflow when everything is measured.
rule sync:
    input:
        runs=every_run(),
        metrics=every_metric(),
        tables=files_of(EXPERIMENT.tables),
    output:
        at("tracking/synced.json"),
    log:
        at("logs/sync.log"),
    benchmark:
        at("benchmarks/sync.tsv")
    conda:
        ENVIRONMENT
    params:
        results=RESULTS,
        launch=launch,
    shell:
        "{params.launch} dseq-jepa sync --results {params.results} --out {output} &> {log}"
