# From kept checkpoints to one exported encoder: score them all, say which and why, export it.
rule score:
    input:
        checkpoints=checkpoints(),
        data=fingerprint(EXPERIMENT.pretraining_data),
    output:
        of_model("score", "scores.json"),
    log:
        log_of("score"),
    benchmark:
        benchmark_of("score")
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPUS,
        cpus_per_task=CORES,
    params:
        digest=digest_of("score"),
        settings=settings_of("score"),
        out=subpath(output[0], parent=True),
        launch=launch,
    shell:
        "{params.launch} dseq-jepa score --settings {params.settings:q} --out {params.out} {input.checkpoints} &> {log}"


rule select:
    input:
        of_model("score", "scores.json"),
    output:
        of_model("export", "selection.json"),
    log:
        log_of("select"),
    benchmark:
        benchmark_of("select")
    conda:
        ENVIRONMENT
    params:
        out=subpath(output[0], parent=True),
        launch=launch,
    shell:
        "{params.launch} dseq-jepa select --scores {input} --out {params.out} &> {log}"


rule export:
    input:
        checkpoints=checkpoints(),
        selection=of_model("export", "selection.json"),
    output:
        weights=of_model("export", "encoder.safetensors"),
        sidecar=of_model("export", "encoder.json"),
    log:
        log_of("export"),
    benchmark:
        benchmark_of("export")
    conda:
        ENVIRONMENT
    params:
        out=subpath(output.weights, parent=True),
        launch=launch,
    shell:
        "{params.launch} dseq-jepa export --selection {input.selection} --out {params.out} &> {log}"
