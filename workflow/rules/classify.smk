# All probes of a group on one exported encoder, in one job, so that start-up is paid once.
rule probe:
    input:
        encoder=of_model("export", "encoder.safetensors"),
        sidecar=of_model("export", "encoder.json"),
        data=fingerprints_of_group,
    output:
        metrics=of_model("evaluate/{group}", "metrics.json"),
        records=of_model("evaluate/{group}", "records.csv.gz"),
    log:
        log_of("evaluate/{group}"),
    benchmark:
        benchmark_of("evaluate/{group}")
    wildcard_constraints:
        group=groups_of_kind("probe"),
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPUS,
        cpus_per_task=CORES,
    params:
        digest=digest_of("evaluate"),
        settings=settings_of("evaluate"),
        out=subpath(output.metrics, parent=True),
        launch=launch,
    shell:
        "{params.launch} dseq-jepa probe --settings {params.settings:q} --encoder {input.encoder} --out {params.out} &> {log}"


# The whole encoder, trained on the labels of one data set.
rule finetune:
    input:
        encoder=of_model("export", "encoder.safetensors"),
        sidecar=of_model("export", "encoder.json"),
        data=fingerprints_of_group,
    output:
        metrics=of_model("evaluate/{group}", "metrics.json"),
        records=of_model("evaluate/{group}", "records.csv.gz"),
    log:
        log_of("evaluate/{group}"),
    benchmark:
        benchmark_of("evaluate/{group}")
    wildcard_constraints:
        group=groups_of_kind("finetune"),
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPUS,
        cpus_per_task=CORES,
    params:
        digest=digest_of("evaluate"),
        settings=settings_of("evaluate"),
        out=subpath(output.metrics, parent=True),
        launch=launch,
    shell:
        "{params.launch} dseq-jepa finetune --settings {params.settings:q} --encoder {input.encoder} --out {params.out} &> {log}"
