"""What a sweep shows, in plain sentences computed from its rows."""

from subq_jax.reporting.results import Row, Summary, arm_name, arm_slope, arms, succeeded, summarise

LEARNED = 0.9  # dense must answer this share right at the training length, or a comparison says nothing
FAILS = 0.2  # an arm this far below dense somewhere has lost what it had to look up
FOLLOWS = 0.1  # an arm at most this far below dense everywhere follows it


def verdict(rows: list[Row]) -> list[str]:
    """Sentences on each task and on cost. A language-modelling task is one with `bits_per_byte`, else it is recall."""
    done = succeeded(rows)
    if not done:
        return ["No cell finished: there is nothing to conclude."]
    sentences = []
    for task in sorted({row["task"] for row in done}):
        here = succeeded(done, task=task)
        judge = _language if any(row.get("bits_per_byte") is not None for row in here) else _recall
        sentences += [f"{task}: {sentence}" for sentence in judge(here) + _cost(here)]
    seeds = len({row["seed"] for row in done})
    if seeds == 1:
        sentences.append("One seed: there is no spread, so small differences mean nothing.")
    return sentences


def _dense_at_training_length(rows) -> Summary | None:
    trained = [row for row in succeeded(rows, mechanism="dense") if row["length"] == row["train_length"]]
    return summarise(trained, "accuracy", []).get(())


def _recall(rows):
    table = summarise(rows, "accuracy", ["mechanism", "budget", "length"])
    lengths = sorted({row["length"] for row in rows})
    dense = _dense_at_training_length(rows)
    if dense is None:
        return ["dense has no result at the training length: this run proves nothing."]
    reached = f"dense answers {dense.mean:.1%} right at the training length"
    if dense.mean < LEARNED:
        return [f"{reached}, below {LEARNED:.0%}: the task was not learned and this run proves nothing."]
    sentences = [f"{reached}, so the task was learned ({LEARNED:.0%} was required)."]
    longest = lengths[-1]
    for mechanism, budget in arms(rows):
        name = arm_name(mechanism, budget)
        # The gap to dense at every length where both were measured; positive means that dense is better.
        gaps = {length: table["dense", None, length].mean - table[mechanism, budget, length].mean for length in lengths
                if (mechanism, budget, length) in table and ("dense", None, length) in table}
        last = table.get((mechanism, budget, longest))
        if mechanism == "dense" or not gaps or last is None:
            continue
        worst = max(gaps, key=gaps.get)
        if mechanism == "sliding_window":
            if gaps[worst] >= FAILS:
                sentences.append(f"{name} falls to {last.mean:.1%} at {longest} tokens ({100 * gaps[worst]:.1f} points "
                                 f"below dense at {worst}): what lies beyond the window is lost.")
            else:
                sentences.append(f"{name} stays within {100 * FAILS:.0f} points of dense: the task does not need "
                                 "reach, and the other arms' success here shows little.")
        elif gaps[worst] > 0:
            ruling = "follows dense" if gaps[worst] <= FOLLOWS else "does not follow dense"
            sentences.append(f"{name} {ruling}: up to {100 * gaps[worst]:.1f} points below it (at {worst} tokens), "
                             f"{last.mean:.1%} right at {longest}.")
        else:
            sentences.append(f"{name} is at or above dense at every length, {last.mean:.1%} right at {longest} tokens.")
    if len(lengths) > 1 and ("dense", None, longest) in table:
        sentences.append(f"dense itself answers {table['dense', None, longest].mean:.1%} right at {longest} tokens.")
    return sentences


def _language(rows):
    table = summarise(rows, "bits_per_byte", ["mechanism", "budget", "length"])
    longest = max(row["length"] for row in rows)
    dense = table.get(("dense", None, longest))
    if dense is None:
        return [f"dense has no result at {longest} tokens to compare with."]
    sentences = [f"dense needs {dense.mean:.3f} bits per byte at {longest} tokens."]
    for mechanism, budget in arms(rows):
        if mechanism != "dense" and (summary := table.get((mechanism, budget, longest))):
            gap = summary.mean - dense.mean
            sentences.append(f"{arm_name(mechanism, budget)} needs {summary.mean:.3f} there, "
                             f"{abs(gap):.3f} {'more' if gap > 0 else 'fewer'} than dense.")
    return sentences


def _cost(rows):
    sentences = []
    for metric, what in (("forward_flops", "forward FLOPs"), ("forward_seconds", "forward time")):
        slopes = [(arm_name(*arm), arm_slope(rows, *arm, metric)) for arm in arms(rows)]
        known = ", ".join(f"{name} {slope:.2f}" for name, slope in slopes if slope is not None)
        if known:
            sentences.append(f"Growth of {what} with length (slope on logarithmic axes, 1 is linear): {known}.")
    return sentences
