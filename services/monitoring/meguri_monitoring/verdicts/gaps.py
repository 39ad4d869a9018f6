"""Values that are not there, and categories that nobody knows: what the distribution of the others does not show."""

from meguri_chassis.profiles import CategoricalProfile
from meguri_contracts.spec import Monitor
from meguri_monitoring.verdicts import distances
from meguri_monitoring.verdicts.drift import Pairs
from meguri_monitoring.verdicts.findings import Finding


def missing(pairs: Pairs, rule: Monitor) -> list[Finding]:
    """Compare the shares of missing values: a z-test for two proportions, and the rule's least change."""
    if rule.missing is None:
        return []
    found = []
    for name, (ours, theirs) in pairs.items():
        if not (ours.missing or theirs.missing):
            change, p_value = 0.0, 1.0
        else:
            change = abs(ours.missing / max(1, ours.rows) - theirs.missing / max(1, theirs.rows))
            p_value = distances.shares_p_value(ours.missing, ours.rows, theirs.missing, theirs.rows)
        moved = change >= rule.missing and p_value < rule.p_value / len(pairs)
        found.append(Finding("missing", name, moved, change, rule.missing, "change of share", p_value, ks=change))
    return found


def strangers(pairs: Pairs, rule: Monitor) -> list[Finding]:
    """Compare the share of rows with categories that the reference never saw with the share that is to be expected."""
    if rule.categories is None:
        return []
    known = {
        name: (ours, theirs)
        for name, (ours, theirs) in pairs.items()
        if isinstance(ours, CategoricalProfile) and isinstance(theirs, CategoricalProfile)
    }
    found = []
    for name, (ours, theirs) in known.items():
        share = theirs.strangers / theirs.n if theirs.n else 0.0
        p_value = distances.strangers_p_value(ours, theirs)
        moved = share >= rule.categories and p_value < rule.p_value / len(known)
        found.append(Finding("categories", name, moved, share, rule.categories, "share", p_value, ks=share))
    return found
