# One page about everything that was measured: results/<experiment>/report.html, which opens without a network.
rule page:
    input:
        runs=every_run(),
        metrics=every_metric(),
        tables=files_of(EXPERIMENT.tables),
        fingerprints=[fingerprint(dataset) for dataset in datasets_in_use()],
        figures=files_of_figures(EXPERIMENT.figures),
        examples=every_example(),
        reported=REPORTED,
    output:
        report(at("report.html"), caption="../report/page.rst", category="Report"),
    log:
        at("logs/report.log"),
    benchmark:
        at("benchmarks/report.tsv")
    conda:
        ENVIRONMENT
    params:
        settings=report_settings,
        figures=[path for path in files_of_figures(EXPERIMENT.figures) if path.endswith(".png")],
        results=subpath(output[0], parent=True),
        launch=launch,
    shell:
        "{params.launch} dseq-jepa report --settings {params.settings:q} --results {params.results}"
        " --reported {input.reported} --out {output} {params.figures} &> {log}"


rule report:
    input:
        at("report.html"),
