# What a pre-training costs. It needs no encoder, and it needs the machine to itself: the default profile gives this rule
# all cores.
rule cost:
    input:
        data=fingerprints_of_group,
    output:
        metrics=of_model("evaluate/{group}", "metrics.json"),
    log:
        log_of("evaluate/{group}"),
    benchmark:
        benchmark_of("evaluate/{group}")
    wildcard_constraints:
        group=groups_of_kind("cost"),
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPUS,
        cpus_per_task=CORES,
    params:
        digest=digest_of("cost"),
        settings=settings_of("cost"),
        out=subpath(output.metrics, parent=True),
        launch=launch,
    shell:
        "{params.launch} dseq-jepa cost --settings {params.settings:q} --out {params.out} &> {log}"
