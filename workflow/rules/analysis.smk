# Covariances, their spectra, and widths from these.
rule covariance:
    input:
        run=f"<results>/{layout.RUN_RECORD}",
        data=inputs(dependencies.observed_data),
    output:
        f"<results>/{layout.COVARIANCE}",
    log:
        f"<logs>/covariance/{layout.RUN}.log",
    benchmark:
        f"<benchmarks>/covariance/{layout.RUN}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    resources:
        gpu=gpus(),
        nodes=1,
    params:
        config=configuration_copy,
        folder=subpath(input.run, parent=True),
        shard="1/1",
        settings=of(dependencies.covariance_settings),
    shell:
        "eigendet covariance {params.folder:q} --config {params.config:q} --shard {params.shard}"
        " --devices {resources.gpu} --nodes {resources.nodes} --output {output:q} --log {log:q}"


use rule covariance as covariance_shard with:
    output:
        temp(f"<results>/{layout.COVARIANCE_SHARD}"),
    log:
        f"<logs>/covariance_shard/{layout.RUN}.{{shard}}_of_{{shards}}.log",
    benchmark:
        f"<benchmarks>/covariance_shard/{layout.RUN}.{{shard}}_of_{{shards}}.tsv"
    params:
        config=configuration_copy,
        folder=subpath(input.run, parent=True),
        shard="{shard}/{shards}",
        settings=of(dependencies.covariance_settings),


# One job observes a whole run, or several a part of it each.
if EXPERIMENT.covariance.shards > 1:

    rule merge:
        input:
            inputs(dependencies.covariance_shards),
        output:
            f"<results>/{layout.COVARIANCE}",
        log:
            f"<logs>/merge/{layout.RUN}.log",
        benchmark:
            f"<benchmarks>/merge/{layout.RUN}.tsv"
        conda:
            "../../envs/eigendet.yaml"
        shell:
            "eigendet merge {input:q} --output {output:q} > {log:q} 2>&1"

    ruleorder: merge > covariance


rule spectra:
    input:
        f"<results>/{layout.COVARIANCE}",
    output:
        eigenvalues=f"<results>/{layout.EIGENVALUES}",
        jackknife=f"<results>/{layout.JACKKNIFE}",
        similarity=f"<results>/{layout.SIMILARITY}",
    log:
        f"<logs>/spectra/{layout.RUN}.log",
    benchmark:
        f"<benchmarks>/spectra/{layout.RUN}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    params:
        folder=subpath(output.eigenvalues, parent=True),
        raw="" if EXPERIMENT.widths.centered else "--raw",
    shell:
        "eigendet spectra {input:q} {params.raw} --output {params.folder:q} > {log:q} 2>&1"


# Spectra as numbers, and all arms and seeds against one another.
rule comparison:
    input:
        inputs(dependencies.comparison_inputs),
    output:
        [f"<results>/{file}" for file in layout.COMPARISON_FILES],
    log:
        f"<logs>/comparison/{layout.NETWORK}.log",
    benchmark:
        f"<benchmarks>/comparison/{layout.NETWORK}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    params:
        folders=of(dependencies.observed_spectra),
        folder=subpath(output[0], parent=True),
        plugins=of(dependencies.plugin_options),
        evaluations=of(dependencies.observed_evaluations),
    shell:
        "eigendet comparison {params.folders:q} {params.plugins:q} {params.evaluations:q}"
        " --output {params.folder:q} > {log:q} 2>&1"


# Initializations by what is said to forecast how well they transfer.
rule forecast:
    input:
        inputs(dependencies.forecast_inputs),
    output:
        f"<results>/{layout.FORECAST}",
    log:
        f"<logs>/forecast/{layout.NETWORK}.log",
    benchmark:
        f"<benchmarks>/forecast/{layout.NETWORK}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    params:
        config=configuration_copy,
        covariances=of(dependencies.forecast_covariances),
    shell:
        "eigendet forecast {params.covariances:q} --config {params.config:q} --output {output:q} > {log:q} 2>&1"


rule widths:
    input:
        inputs(dependencies.width_inputs),
    output:
        f"<results>/{layout.WIDTHS}",
    log:
        f"<logs>/widths/{layout.NETWORK}/{{arm}}.log",
    benchmark:
        f"<benchmarks>/widths/{layout.NETWORK}/{{arm}}.tsv"
    localrule: True
    conda:
        "../../envs/eigendet.yaml"
    params:
        config=configuration_copy,
        sources=of(dependencies.width_sources),
        settings=of(dependencies.width_settings),
    shell:
        "eigendet widths {wildcards.arm} {params.sources:q} --config {params.config:q}"
        " --backbone {wildcards.backbone} --detector {wildcards.detector} --output {output:q} > {log:q} 2>&1"


rule front:
    input:
        inputs(dependencies.front_inputs),
    output:
        f"<results>/{layout.FRONT}",
    log:
        f"<logs>/front/{layout.NETWORK}.log",
    benchmark:
        f"<benchmarks>/front/{layout.NETWORK}.tsv"
    localrule: True
    conda:
        "../../envs/eigendet.yaml"
    params:
        config=configuration_copy,
        sources=of(dependencies.front_sources),
        settings=of(dependencies.width_settings),
    shell:
        "eigendet front {params.sources:q} --config {params.config:q} --backbone {wildcards.backbone}"
        " --detector {wildcards.detector} --output {output:q} > {log:q} 2>&1"


# Every rule, moment and weighting, of the same spectra. Covariances hold one weighting, so the last snapshots are
# observed once more for the other.
rule readings:
    input:
        inputs(dependencies.readings_inputs),
    output:
        f"<results>/{layout.READINGS}",
    log:
        f"<logs>/readings/{layout.NETWORK}.log",
    benchmark:
        f"<benchmarks>/readings/{layout.NETWORK}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    resources:
        gpu=gpus(),
        nodes=1,
    params:
        config=configuration_copy,
        sources=of(dependencies.readings_sources),
        settings=of(dependencies.readings_settings),
    shell:
        "eigendet readings {params.sources:q} --config {params.config:q} --backbone {wildcards.backbone}"
        " --detector {wildcards.detector} --devices {resources.gpu} --nodes {resources.nodes}"
        " --output {output:q} --log {log:q}"
