# Covariances, their spectra, and widths from these.
rule dump_covariance:
    input:
        run=f"<results>/runs/{RUN}/run.json",
        data=check("detection", EXPERIMENT.covariance.split),
    output:
        f"<results>/covariance/{RUN}.h5",
    log:
        f"<logs>/dump_covariance/{RUN}.log",
    benchmark:
        f"<benchmarks>/dump_covariance/{RUN}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    resources:
        gpu=gpus(),
        nodes=1,
    params:
        config=CONFIG,
        folder=subpath(input.run, parent=True),
        shard="1/1",
        settings=dump_settings,
    shell:
        "eigendet dump {params.folder} --config {params.config} --shard {params.shard}"
        " --devices {resources.gpu} --nodes {resources.nodes} --output {output} > {log} 2>&1"


use rule dump_covariance as dump_shard with:
    output:
        temp(f"<results>/covariance/{RUN}.{{shard}}_of_{{shards}}.h5"),
    log:
        f"<logs>/dump_covariance/{RUN}.{{shard}}_of_{{shards}}.log",
    benchmark:
        f"<benchmarks>/dump_covariance/{RUN}.{{shard}}_of_{{shards}}.tsv"
    params:
        config=CONFIG,
        folder=subpath(input.run, parent=True),
        shard="{shard}/{shards}",
        settings=dump_settings,


rule merge_covariance:
    input:
        covariance_shards,
    output:
        f"<results>/covariance/{RUN}.h5",
    log:
        f"<logs>/merge_covariance/{RUN}.log",
    benchmark:
        f"<benchmarks>/merge_covariance/{RUN}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    shell:
        "eigendet merge {input} --output {output} > {log} 2>&1"


# One job dumps a whole run, or several do a part of it each.
if EXPERIMENT.covariance.dump_shards > 1:

    ruleorder: merge_covariance > dump_covariance

else:

    ruleorder: dump_covariance > merge_covariance


rule spectrum:
    input:
        f"<results>/covariance/{RUN}.h5",
    output:
        eigenvalues=f"<results>/spectra/{RUN}/eigenvalues.parquet",
        jackknife=f"<results>/spectra/{RUN}/jackknife.parquet",
        similarity=f"<results>/spectra/{RUN}/similarity.h5",
    log:
        f"<logs>/spectrum/{RUN}.log",
    benchmark:
        f"<benchmarks>/spectrum/{RUN}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    params:
        folder=subpath(output.eigenvalues, parent=True),
        raw="" if EXPERIMENT.widths.centered else "--raw",
    shell:
        "eigendet spectrum {input} {params.raw} --output {params.folder} > {log} 2>&1"


# Spectra as numbers, and all arms and seeds against one another.
rule compare:
    input:
        observed_spectra,
        all_rule_plugins,
    output:
        expand(
            "<results>/comparison/{{backbone}}/{{detector}}/{table}",
            table=[
                "metrics.parquet",
                "distances.parquet",
                "tests.parquet",
                "notes.json",
            ],
        ),
    log:
        "<logs>/compare/{backbone}/{detector}.log",
    benchmark:
        "<benchmarks>/compare/{backbone}/{detector}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    params:
        folders=observed,
        folder=subpath(output[0], parent=True),
        plugins=plugin_folders(),
    shell:
        "eigendet compare {params.folders} {params.plugins} --output {params.folder} > {log} 2>&1"


rule derive_widths:
    input:
        unpack(width_inputs),
    output:
        "<results>/widths/{backbone}/{detector}/{arm}.json",
    log:
        "<logs>/derive_widths/{backbone}/{detector}/{arm}.log",
    benchmark:
        "<benchmarks>/derive_widths/{backbone}/{detector}/{arm}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    params:
        config=CONFIG,
        sources=width_sources,
        settings=width_settings,
    shell:
        "eigendet widths {wildcards.arm} {params.sources} --config {params.config}"
        " --backbone {wildcards.backbone} --detector {wildcards.detector} --output {output} > {log} 2>&1"


rule pareto_front:
    input:
        lambda wildcards: [
            f"{folder}/eigenvalues.parquet" for folder in spectra(wildcards)
        ],
        plugins.files("rule", [EXPERIMENT.widths.rule]),
    output:
        "<results>/widths/{backbone}/{detector}/front.csv",
    log:
        "<logs>/pareto_front/{backbone}/{detector}.log",
    benchmark:
        "<benchmarks>/pareto_front/{backbone}/{detector}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    params:
        config=CONFIG,
        folders=spectra,
        settings=width_settings,
    shell:
        "eigendet front {params.folders} --config {params.config} --backbone {wildcards.backbone}"
        " --detector {wildcards.detector} --output {output} > {log} 2>&1"
