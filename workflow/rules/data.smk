# Every image is decoded and every annotation checked before anything is trained.
rule check_data:
    input:
        inputs(dependencies.data_files),
    output:
        f"<results>/{layout.DATA}",
    log:
        "<logs>/check_data/{task}_{split}_{digest}.log",
    benchmark:
        "<benchmarks>/check_data/{task}_{split}_{digest}.tsv"
    priority: 1  # before any training, also of what does not need this very data
    conda:
        "../../envs/eigendet.yaml"
    params:
        config=configuration_copy,
    shell:
        "eigendet check-data {wildcards.task} {wildcards.split} --config {params.config:q} --output {output:q} --log {log:q}"


# Every network is built, trained for a step and made to detect, so that a plugin's mistake stops no run half way.
rule check_network:
    input:
        data=dependencies.checked_data(EXPERIMENT, "detection", "train"),
        plugins=inputs(dependencies.network_files),
    output:
        f"<results>/{layout.NETWORK_CHECK}",
    log:
        f"<logs>/check_network/{layout.NETWORK}.log",
    benchmark:
        f"<benchmarks>/check_network/{layout.NETWORK}.tsv"
    priority: 1
    conda:
        "../../envs/eigendet.yaml"
    params:
        config=configuration_copy,
        settings=of(dependencies.network_settings),
    shell:
        "eigendet check-network --config {params.config:q} --backbone {wildcards.backbone}"
        " --detector {wildcards.detector} --output {output:q} --log {log:q}"
