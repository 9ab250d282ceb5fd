# A figure is drawn from kept checkpoints, pictures and journals; `snakemake figure2` asks for one by its name.
rule draw:
    input:
        checkpoints=checkpoints_of_figure,
        runs=runs_of_figure,
        data=fingerprint(EXPERIMENT.pretraining_data),
    output:
        png=report(at("figures/{figure}.png"), caption="../report/figure.rst", category="Figures"),
        pdf=at("figures/{figure}.pdf"),
        caption=at("figures/{figure}.caption.md"),
    log:
        at("logs/figures/{figure}.log"),
    benchmark:
        at("benchmarks/figures/{figure}.tsv")
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=gpus_of_figure,
    params:
        digest=digest_of_figure,
        settings=settings_of_figure,
        results=subpath(output.png, ancestor=2),
        launch=launch,
    shell:
        "{params.launch} dseq-jepa figures --settings {params.settings:q} --results {params.results} &> {log}"


for name in EXPERIMENT.figures:

    rule:
        name:
            name
        input:
            files_of_figures([name]),


rule figures:
    input:
        files_of_figures(EXPERIMENT.figures),
