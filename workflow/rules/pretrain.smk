# One pre-training per method, architecture and seed. What it needs to go on after a kill (state/, journal.jsonl) is
# never a declared output: Snakemake deletes those before a job.
rule pretrain:
    input:
        data=fingerprint(EXPERIMENT.pretraining_data),
    output:
        checkpoints=checkpoints(),
        run=of_model("pretrain", "run.json"),
    log:
        log_of("pretrain"),
    benchmark:
        benchmark_of("pretrain")
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPUS,
        cpus_per_task=CORES,
    params:
        digest=digest_of("pretrain"),
        settings=settings_of("pretrain"),
        out=subpath(output.run, parent=True),
        launch=launch,
    shell:
        "{params.launch} dseq-jepa pretrain --settings {params.settings:q} --out {params.out} &> {log}"
