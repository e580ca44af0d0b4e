# Pre-training, then detectors: fine-tuned, from scratch, and from scratch with other widths.
# Snapshots and last.ckpt are not declared as outputs: Snakemake would delete them when it restarts a job.
rule pretrain:
    input:
        data=inputs(dependencies.pretrain_inputs),
        plugin=inputs(dependencies.backbone_files),
    output:
        weights=f"<results>/{layout.PRETRAINED_WEIGHTS}",
        run=f"<results>/{layout.PRETRAINED_RECORD}",
    log:
        "<logs>/pretrain/{backbone}.log",
    benchmark:
        "<benchmarks>/pretrain/{backbone}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    threads: 1 + (EXPERIMENT.pretraining.workers if EXPERIMENT.pretraining else 0)
    resources:
        gpu=gpus(),
        nodes=1,
    params:
        config=configuration_copy,
        folder=subpath(output.run, parent=True),
        settings=of(dependencies.pretrain_settings),
    shell:
        "eigendet pretrain --config {params.config:q} --backbone {wildcards.backbone}"
        " --devices {resources.gpu} --nodes {resources.nodes} --output {params.folder:q} --log {log:q}"


rule train:
    input:
        unpack(inputs(dependencies.train_inputs)),
    output:
        run=f"<results>/{layout.RUN_RECORD}",
        losses=f"<results>/{layout.RUN_LOG}",
    log:
        f"<logs>/train/{layout.RUN}.log",
    benchmark:
        f"<benchmarks>/train/{layout.RUN}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    threads: 1 + EXPERIMENT.training.workers
    resources:
        gpu=gpus(),
        nodes=1,
    params:
        config=configuration_copy,
        folder=subpath(output.run, parent=True),
        start=of(dependencies.train_options),
        settings=of(dependencies.train_settings),
    shell:
        "eigendet train --config {params.config:q} {params.start:q} --backbone {wildcards.backbone}"
        " --detector {wildcards.detector} --seed {wildcards.seed}"
        " --devices {resources.gpu} --nodes {resources.nodes} --output {params.folder:q} --log {log:q}"
