# Pre-training, then detectors: fine-tuned, from scratch, and from scratch with other widths.
# Snapshots and last.ckpt are not declared as outputs: Snakemake would delete them when it restarts a job.
rule pretrain:
    input:
        data=inputs(dependencies.pretrain_inputs),
        plugin=inputs(dependencies.backbone_files),
    output:
        weights=f"<results>/{layout.PRETRAINED}/{layout.START_WEIGHTS}",
        run=f"<results>/{layout.PRETRAINED}/{layout.START_RECORD}",
    log:
        "<logs>/pretrain/{backbone}/seed_{seed}.log",
    benchmark:
        "<benchmarks>/pretrain/{backbone}/seed_{seed}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    threads: 1 + (EXPERIMENT.pretraining.workers if EXPERIMENT.pretraining else 0)
    resources:
        gpu=gpus(),
        nodes=1,
    params:
        config=configuration_copy,
        folder=subpath(output.run, parent=True),
        widths=[],
        settings=of(dependencies.pretrain_settings),
    shell:
        "eigendet pretrain --config {params.config:q} {params.widths:q} --backbone {wildcards.backbone}"
        " --seed {wildcards.seed}"
        " --devices {resources.gpu} --nodes {resources.nodes} --output {params.folder:q} --log {log:q}"


# The same with the widths of an arm.
use rule pretrain as pretrain_resized with:
    input:
        data=inputs(dependencies.pretrain_inputs),
        plugin=inputs(dependencies.backbone_files),
        widths=inputs(dependencies.pretrain_widths),
    output:
        weights=f"<results>/{layout.PRETRAINED_RESIZED}/{layout.START_WEIGHTS}",
        run=f"<results>/{layout.PRETRAINED_RESIZED}/{layout.START_RECORD}",
    log:
        f"<logs>/pretrain_resized/{layout.RUN}.log",
    benchmark:
        f"<benchmarks>/pretrain_resized/{layout.RUN}.tsv"
    params:
        config=configuration_copy,
        folder=subpath(output.run, parent=True),
        widths=of(dependencies.pretrain_options),
        settings=of(dependencies.pretrain_settings),


rule fetch:
    input:
        files=inputs(dependencies.fetch_inputs),
        plugin=inputs(dependencies.backbone_files),
    output:
        weights=f"<results>/{layout.FETCHED}/{layout.START_WEIGHTS}",
        run=f"<results>/{layout.FETCHED}/{layout.START_RECORD}",
    log:
        "<logs>/fetch/{arm}/{backbone}.log",
    benchmark:
        "<benchmarks>/fetch/{arm}/{backbone}.tsv"
    priority: 1  # what does not fit stops no run half way
    localrule: True  # nodes of a cluster may have no way to who published them
    conda:
        "../../envs/eigendet.yaml"
    params:
        config=configuration_copy,
        folder=subpath(output.run, parent=True),
        settings=of(dependencies.fetch_settings),
    shell:
        "eigendet fetch --config {params.config:q} --arm {wildcards.arm} --backbone {wildcards.backbone}"
        " --output {params.folder:q} --log {log:q}"


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
