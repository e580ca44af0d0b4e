# Every image is decoded and every annotation checked before anything is trained.
rule check_data:
    input:
        checked_files,
    output:
        "<results>/data/{task}_{split}_{digest}.json",
    log:
        "<logs>/data/{task}_{split}_{digest}.log",
    benchmark:
        "<benchmarks>/data/{task}_{split}_{digest}.tsv"
    priority: 1  # before any training, also of what does not need this very data
    conda:
        "../../envs/eigendet.yaml"
    params:
        config=CONFIG,
    shell:
        "eigendet check {wildcards.task} {wildcards.split} --config {params.config} --output {output} > {log} 2>&1"
