# Miniature data sets are generated; every data set is checked, and its fingerprint stands for it from then on.
rule miniature:
    output:
        at("data/{dataset}.json"),
    log:
        at("logs/miniature/{dataset}.log"),
    benchmark:
        at("benchmarks/miniature/{dataset}.tsv")
    conda:
        ENVIRONMENT
    params:
        settings=miniature_of,
        root=root_of,
        layout=layout_of,
        launch=launch,
    shell:
        "{params.launch} dseq-jepa data make-miniature --settings {params.settings:q} --layout {params.layout}"
        " --root {params.root:q} --out {output} &> {log}"


rule data_check:
    input:
        generated,
    output:
        fingerprint("{dataset}"),
    log:
        at("logs/data_check/{dataset}.log"),
    benchmark:
        at("benchmarks/data_check/{dataset}.tsv")
    conda:
        ENVIRONMENT
    params:
        settings=data_of,
        launch=launch,
    shell:
        "{params.launch} dseq-jepa data check --data {wildcards.dataset} --settings {params.settings:q}"
        " --out {output} &> {log}"
