# Scores of every run, and the page.
rule evaluate:
    input:
        run=f"<results>/runs/{RUN}/run.json",
        data=check("detection", "val"),
    output:
        f"<results>/evaluation/{RUN}.json",
    log:
        f"<logs>/evaluate/{RUN}.log",
    benchmark:
        f"<benchmarks>/evaluate/{RUN}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    resources:
        gpu=gpus(),
    params:
        config=CONFIG,
        folder=subpath(input.run, parent=True),
    shell:
        "eigendet evaluate {params.folder} --config {params.config} --devices {resources.gpu} --output {output} > {log} 2>&1"


# All arms in turns in one job that has the machine to itself: times are to be compared.
rule latency:
    input:
        first_seed_records,
        data=check("detection", "val"),
    output:
        "<results>/latency/{backbone}/{detector}.json",
    log:
        "<logs>/latency/{backbone}/{detector}.log",
    benchmark:
        "<benchmarks>/latency/{backbone}/{detector}.tsv"
    conda:
        "../../envs/eigendet.yaml"
    threads: all_cores
    resources:
        gpu=gpus(),
    params:
        config=CONFIG,
        folders=first_seed_runs,
    shell:
        "eigendet latency {params.folders} --config {params.config} --devices {resources.gpu} --output {output} > {log} 2>&1"


rule report:
    input:
        scores=expand("<results>/evaluation/{run}.json", run=runs(EXPERIMENT.all_arms)),
        data=[check("detection", split) for split in ("train", "val")],
        comparisons=networks("<results>/comparison/{backbone}/{detector}/notes.json"),
        latency=networks("<results>/latency/{backbone}/{detector}.json"),
        fronts=(
            networks("<results>/widths/{backbone}/{detector}/front.csv")
            if EXPERIMENT.derived
            else []
        ),
    output:
        page=report(
            "<results>/report.html",
            caption="../report/page.rst",
            category="Page",
        ),
        summary=report(
            "<results>/summary.csv",
            caption="../report/summary.rst",
            category="Tables",
        ),
        figures=report(
            directory("<results>/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        "<logs>/report.log",
    benchmark:
        "<benchmarks>/report.tsv"
    conda:
        "../../envs/eigendet.yaml"
    params:
        folder=subpath(output.page, parent=True),
    shell:
        "eigendet report {params.folder} > {log} 2>&1"
