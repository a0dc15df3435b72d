"""What the numbers of a study do not say, found in the rows themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from prunedeploy.study.rows.rows import Row
from prunedeploy.study.statistics.anova import ALPHA, FEWEST_TO_CHECK
from prunedeploy.study.statistics.cells import Study
from prunedeploy.study.statistics.contrasts import Contrast, share_runs
from prunedeploy.study.statistics.design import TIME_MS, configuration
from prunedeploy.study.statistics.power import POWER, detectable_effect
from prunedeploy.study.statistics.tables import percent


def caveats(study: Study, contrasts: Sequence[Contrast]) -> list[str]:
    """One sentence or more per thing that limits what can be concluded."""
    found = [
        _few_runs(contrasts),
        _control(study, contrasts),
        _shared_runs(study, contrasts),
        _assumptions(contrasts),
        _many_tests(contrasts),
        _benches(study),
        _noisy(study),
        _not_there(study),
    ]
    return [sentence for sentence in found if sentence]


def row_name(row: Row) -> str:
    """A model of the grid in words."""
    return f"{configuration(row.configuration).label} at {percent(row.ratio)}, run {row.run}"


def _few_runs(contrasts: Sequence[Contrast]) -> str:
    sizes = [min(c.comparison.n_a, c.comparison.n_b) for c in contrasts if c.comparison.n_a and c.comparison.n_b]
    if not sizes:
        return ""
    n = Counter(sizes).most_common(1)[0][0]
    effect = detectable_effect(n)
    if effect is None:
        return "There is one run per cell: nothing says how far another would lie, so there is no ANOVA and no test."
    sentence = (
        f"Most groups have {n} runs. A test of two such groups finds a difference with a chance of {100 * POWER:g} % "
        f"only if it is {effect:.1f} standard deviations or more; smaller ones are missed more often, so that not "
        "significant does not mean equal."
    )
    if n <= FEWEST_TO_CHECK:
        sentence += " With so few runs, what ANOVA assumes can hardly be checked either."
    return sentence


def _control(study: Study, contrasts: Sequence[Contrast]) -> str:
    """At ratio 0 nothing is pruned: pairs of one colour mode are the same network, so tests there are a control."""
    here = [
        c
        for c in contrasts
        if c.ratio == 0.0
        and configuration(c.pair.a).greyscale == configuration(c.pair.b).greyscale
        and c.comparison.p_value is not None
    ]
    if not here:
        return ""
    alarms = [c for c in here if (c.comparison.p_value or 0) < ALPHA]
    kept = [c for c in alarms if c.significant]
    sentence = (
        "A control: at ratio 0 nothing is pruned, so configurations of one colour mode are the same network and a test "
        f"between them should find nothing. {len(alarms)} of {len(here)} such tests have p < {ALPHA:g}, "
        f"{len(kept)} of them after Holm's correction."
    )
    if alarms:
        largest = []
        for metric in (study.map_metric, TIME_MS):
            gaps = [abs(c.comparison.difference or 0) for c in alarms if c.metric == metric]
            if gaps:
                largest.append(f"{max(gaps):.{metric.decimals + 1}f} {metric.unit or 'mAP'}")
        sentence += (
            f" So something other than pruning makes configurations differ by up to {' and '.join(largest)}, and "
            "differences no larger than that at other ratios need not come from pruning."
        )
    return sentence


def _shared_runs(study: Study, contrasts: Sequence[Contrast]) -> str:
    pairs = {c.pair: None for c in contrasts if share_runs(study, c.pair.a, c.pair.b)}
    if not pairs:
        return ""
    paired = [(c.p_paired, c.comparison.p_value or 0.0) for c in contrasts if c.p_paired is not None]
    return (
        f"In {len(pairs)} pairs both configurations have the same mAP in every run at ratio 0: they share their "
        "pre-training, run by run. ANOVA takes groups as independent, which is cautious where runs have something in "
        f"common. A paired test uses it: of {len(paired)} such tests {sum(one < ALPHA for one, _ in paired)} have "
        f"p < {ALPHA:g}, of ANOVA's and Welch's in the same places {sum(other < ALPHA for _, other in paired)}."
    )


def _assumptions(contrasts: Sequence[Contrast]) -> str:
    tested = [c.comparison for c in contrasts if c.comparison.p_value is not None]
    welch = [c for c in tested if c.test == "Welch"]
    if not welch:
        return ""
    reversed_ = [c for c in welch if ((c.p_anova or 0) < ALPHA) != ((c.p_welch or 0) < ALPHA)]
    return (
        f"In {len(welch)} of {len(tested)} tests what ANOVA assumes is in doubt or could not be checked, and Welch's "
        f"test is read instead; at p < {ALPHA:g} that changes {len(reversed_)} answers. Welch's test needs no equal "
        "variances; it does not cure a lack of normality."
    )


def _many_tests(contrasts: Sequence[Contrast]) -> str:
    tested = [c for c in contrasts if c.comparison.p_value is not None]
    if not tested:
        return ""
    plain = sum((c.comparison.p_value or 0) < ALPHA for c in tested)
    kept = sum(c.significant for c in tested)
    return (
        f"Of {len(tested)} tests in Tables I to IV about {ALPHA * len(tested):.0f} would have p < {ALPHA:g} even if "
        f"nothing differed. {plain} have; {kept} still do after Holm's correction for all of them."
    )


def _benches(study: Study) -> str:
    if study.bench is None:
        return ""
    here, runtime = study.bench
    others = [f"{count} on {machine}" for (machine, _), count in study.benches.items() if machine != here]
    sentences = []
    if others:
        sentences.append(f"Times are only compared on one machine, {here}; left out are {', '.join(others)}.")
    if sum(machine == here for machine, _ in study.benches) > 1:
        sentences.append(f"Of that machine's runtimes {runtime} is shown, which most rows have.")
    return " ".join(sentences)


def _noisy(study: Study) -> str:
    times = [row for row in study.rows if row.time_ms is not None]
    noisy = [row for row in times if row.time_noisy]
    if not noisy:
        return ""
    return f"{len(noisy)} of {len(times)} times are noisy: their samples scatter by more than 10 %. None is left out."


def _not_there(study: Study) -> str:
    counts = {"failed": len(study.failed), "not done yet": len(study.missing)}
    parts = [f"{count} model{'s' * (count > 1)} {what}" for what, count in counts.items() if count]
    return f"{' and '.join(parts)}: their cells have fewer runs, or none." if parts else ""
