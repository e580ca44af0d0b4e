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
    params:
        config=CONFIG,
        folder=subpath(input.run, parent=True),
        settings=EXPERIMENT.covariance.model_dump(
            mode="json", exclude={"arms", "memory"}
        ),
    shell:
        "eigendet dump {params.folder} --config {params.config} --output {output} > {log} 2>&1"


rule spectrum:
    input:
        covariance=f"<results>/covariance/{RUN}.h5",
        rules=plugins.files("rule"),
    output:
        eigenvalues=f"<results>/spectra/{RUN}/eigenvalues.parquet",
        metrics=f"<results>/spectra/{RUN}/metrics.csv",
    log:
        f"<logs>/spectrum/{RUN}.log",
    benchmark:
        f"<benchmarks>/spectrum/{RUN}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    shell:
        "eigendet spectrum {input.covariance} --eigenvalues {output.eigenvalues} --metrics {output.metrics} > {log} 2>&1"


rule derive_widths:
    input:
        expand(
            "<results>/spectra/{arm}/{{backbone}}/{{detector}}/seed_{seed}/eigenvalues.parquet",
            arm=EXPERIMENT.widths.arm,
            seed=EXPERIMENT.seeds,
        ),
    output:
        derived="<results>/widths/{backbone}/{detector}/derived.json",
        uniform="<results>/widths/{backbone}/{detector}/uniform.json",
    log:
        "<logs>/derive_widths/{backbone}/{detector}.log",
    benchmark:
        "<benchmarks>/derive_widths/{backbone}/{detector}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    params:
        config=CONFIG,
        folder=subpath(output.derived, parent=True),
        settings=EXPERIMENT.widths.model_dump(mode="json"),
    shell:
        "eigendet widths {input} --config {params.config} --backbone {wildcards.backbone}"
        " --output {params.folder} > {log} 2>&1"
