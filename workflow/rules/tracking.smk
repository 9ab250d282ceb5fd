# The journals are the truth; this mirrors them into MLflow when everything is measured.
rule sync:
    input:
        runs=every_run(),
        metrics=every_metric(),
        tables=files_of(EXPERIMENT.tables),
        report=at("report.html"),
    output:
        at("tracking/synced.json"),
    log:
        at("logs/sync.log"),
    benchmark:
        at("benchmarks/sync.tsv")
    conda:
        ENVIRONMENT
    params:
        experiment=EXPERIMENT_NAME,
        results=subpath(output[0], ancestor=2),
        launch=launch,
    shell:
        "{params.launch} dseq-jepa sync --results {params.results} --experiment {params.experiment:q}"
        " --out {output} &> {log}"
