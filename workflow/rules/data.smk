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
        "eigendet check-data {wildcards.task} {wildcards.split} --config {params.config} --output {output} > {log} 2>&1"


# Every network is built, trained for a step and made to detect, so that a plugin's mistake stops no run half way.
rule check_network:
    input:
        data=check("detection", "train"),
        plugins=detector_plugins,
    output:
        "<results>/networks/{backbone}/{detector}.json",
    log:
        "<logs>/networks/{backbone}/{detector}.log",
    benchmark:
        "<benchmarks>/networks/{backbone}/{detector}.tsv"
    priority: 1
    conda:
        "../../envs/eigendet.yaml"
    params:
        config=CONFIG,
        settings=network_settings,
    shell:
        "eigendet check-network --config {params.config} --backbone {wildcards.backbone}"
        " --detector {wildcards.detector} --output {output} > {log} 2>&1"
