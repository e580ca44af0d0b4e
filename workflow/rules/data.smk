# Every image is decoded and every annotation checked before anything is trained.
rule check_data:
    input:
        dataset_inputs,
    output:
        "<results>/data/{task}_{split}.json",
    log:
        "<logs>/data/{task}_{split}.log",
    benchmark:
        "<benchmarks>/data/{task}_{split}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    params:
        config=CONFIG,
        settings=dataset_settings,
    shell:
        "eigendet check {wildcards.task} {wildcards.split} --config {params.config} --output {output} > {log} 2>&1"
