# Semantic segmentation: UPerNet on one exported encoder.
rule segment:
    input:
        encoder=of_model("export", "encoder.safetensors"),
        sidecar=of_model("export", "encoder.json"),
        data=fingerprints_of_group,
    output:
        metrics=of_model("evaluate/{group}", "metrics.json"),
        records=of_model("evaluate/{group}", "records.csv.gz"),
        examples=report(
            of_model("evaluate/{group}", "examples.png"), caption="../report/segmentation.rst", category="Segmentation"
        ),
    log:
        log_of("evaluate/{group}"),
    benchmark:
        benchmark_of("evaluate/{group}")
    wildcard_constraints:
        group=groups_of_kind("segment"),
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
        "{params.launch} dseq-jepa segment --settings {params.settings:q} --encoder {input.encoder} --out {params.out} &> {log}"


# Object detection and instance segmentation: Mask R-CNN on one exported encoder.
rule detect:
    input:
        encoder=of_model("export", "encoder.safetensors"),
        sidecar=of_model("export", "encoder.json"),
        data=fingerprints_of_group,
    output:
        metrics=of_model("evaluate/{group}", "metrics.json"),
        records=of_model("evaluate/{group}", "records.csv.gz"),
        predictions=of_model("evaluate/{group}", "predictions.json.gz"),
        examples=report(
            of_model("evaluate/{group}", "examples.png"), caption="../report/detection.rst", category="Detection"
        ),
    log:
        log_of("evaluate/{group}"),
    benchmark:
        benchmark_of("evaluate/{group}")
    wildcard_constraints:
        group=groups_of_kind("detect"),
    conda:
        DETECTION_ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPUS,
        cpus_per_task=CORES,
    params:
        digest=digest_of("evaluate"),
        settings=settings_of("evaluate"),
        out=subpath(output.metrics, parent=True),
        command=detection_command,
    shell:
        "{params.command} detect --settings {params.settings:q} --encoder {input.encoder} --out {params.out} &> {log}"
