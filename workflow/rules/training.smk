# Pre-training, then detectors: fine-tuned, from scratch, and from scratch with other widths.
# Snapshots and last.ckpt are no declared outputs: Snakemake would delete them when it restarts a job.
rule pretrain:
    input:
        data=pretrain_data,
        plugin=backbone_plugin,
    output:
        weights="<results>/pretrained/{backbone}/backbone.pt",
        run="<results>/pretrained/{backbone}/run.json",
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
        config=CONFIG,
        folder=subpath(output.run, parent=True),
        settings=pretrain_settings,
    shell:
        "eigendet pretrain --config {params.config} --backbone {wildcards.backbone}"
        " --devices {resources.gpu} --nodes {resources.nodes} --output {params.folder} > {log} 2>&1"


rule scratch:
    input:
        network="<results>/networks/{backbone}/{detector}.json",
        data=check("detection", "train"),
        plugin=detector_plugins,
    output:
        run="<results>/runs/scratch/{backbone}/{detector}/seed_{seed}/run.json",
        losses="<results>/runs/scratch/{backbone}/{detector}/seed_{seed}/log.csv",
    log:
        "<logs>/scratch/{backbone}/{detector}/seed_{seed}.log",
    benchmark:
        "<benchmarks>/scratch/{backbone}/{detector}/seed_{seed}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    threads: 1 + EXPERIMENT.training.workers
    resources:
        gpu=gpus(),
        nodes=1,
    params:
        config=CONFIG,
        folder=subpath(output.run, parent=True),
        start="--arm scratch",
        settings=training_settings("scratch"),
    shell:
        "eigendet train --config {params.config} {params.start} --backbone {wildcards.backbone}"
        " --detector {wildcards.detector} --seed {wildcards.seed}"
        " --devices {resources.gpu} --nodes {resources.nodes} --output {params.folder} > {log} 2>&1"


use rule scratch as finetune with:
    input:
        network="<results>/networks/{backbone}/{detector}.json",
        data=check("detection", "train"),
        plugin=detector_plugins,
        init="<results>/pretrained/{backbone}/backbone.pt",
    output:
        run="<results>/runs/finetune/{backbone}/{detector}/seed_{seed}/run.json",
        losses="<results>/runs/finetune/{backbone}/{detector}/seed_{seed}/log.csv",
    log:
        "<logs>/finetune/{backbone}/{detector}/seed_{seed}.log",
    benchmark:
        "<benchmarks>/finetune/{backbone}/{detector}/seed_{seed}.tsv"
    params:
        config=CONFIG,
        folder=subpath(output.run, parent=True),
        start=f"--arm finetune --init {RESULTS}/pretrained/{{backbone}}/backbone.pt",
        settings=training_settings("finetune"),


use rule scratch as retrain with:
    input:
        network="<results>/networks/{backbone}/{detector}.json",
        data=check("detection", "train"),
        plugin=detector_plugins,
        widths="<results>/widths/{backbone}/{detector}/{arm}.json",
    output:
        run="<results>/runs/{arm}/{backbone}/{detector}/seed_{seed}/run.json",
        losses="<results>/runs/{arm}/{backbone}/{detector}/seed_{seed}/log.csv",
    log:
        "<logs>/retrain/{arm}/{backbone}/{detector}/seed_{seed}.log",
    benchmark:
        "<benchmarks>/retrain/{arm}/{backbone}/{detector}/seed_{seed}.tsv"
    wildcard_constraints:
        arm="|".join([*EXPERIMENT.derived, *EXPERIMENT.controls]) or "none",
    params:
        config=CONFIG,
        folder=subpath(output.run, parent=True),
        start=f"--arm {{arm}} --widths {RESULTS}/widths/{{backbone}}/{{detector}}/{{arm}}.json",
        settings=training_settings(None),
