# Scores of every run, and the page.
rule evaluate:
    input:
        run=f"<results>/{layout.RUN_RECORD}",
        data=inputs(dependencies.scored_data),
    output:
        f"<results>/{layout.EVALUATION}",
    log:
        f"<logs>/evaluate/{layout.RUN}.log",
    benchmark:
        f"<benchmarks>/evaluate/{layout.RUN}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    resources:
        gpu=gpus(),
    params:
        config=configuration_copy,
        folder=subpath(input.run, parent=True),
        settings=of(dependencies.evaluation_settings),
    shell:
        "eigendet evaluate {params.folder:q} --config {params.config:q} --devices {resources.gpu} --output {output:q} --log {log:q}"


# All arms in turns in one job that has the machine to itself: times are to be compared.
rule latency:
    input:
        inputs(dependencies.latency_records),
        data=inputs(dependencies.scored_data),
    output:
        f"<results>/{layout.LATENCY}",
    log:
        f"<logs>/latency/{layout.NETWORK}.log",
    benchmark:
        f"<benchmarks>/latency/{layout.NETWORK}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    threads: all_cores
    resources:
        gpu=gpus(),
    params:
        config=configuration_copy,
        folders=of(dependencies.latency_runs),
    shell:
        "eigendet latency {params.folders:q} --config {params.config:q} --devices {resources.gpu} --output {output:q} --log {log:q}"


rule report:
    input:
        dependencies.report_inputs(EXPERIMENT),
    output:
        page=report(
            f"<results>/{layout.PAGE}",
            caption="../report/page.rst",
            category="Page",
        ),
        summary=report(
            f"<results>/{layout.SUMMARY}",
            caption="../report/summary.rst",
            category="Tables",
        ),
        figures=report(
            directory(f"<results>/{layout.FIGURES}"),
            patterns=["{figure}.svg"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        "<logs>/report.log",
    benchmark:
        "<benchmarks>/report.tsv"
    localrule: True
    conda:
        "../../envs/eigendet.yaml"
    params:
        folder=subpath(output.page, parent=True),
    shell:
        "eigendet report {params.folder:q} > {log:q} 2>&1"


RESULTS = os.path.dirname(rules.report.output.page)
