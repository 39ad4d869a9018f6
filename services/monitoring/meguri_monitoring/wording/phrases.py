"""What services say in the log in English, told to people: in plainer words, or in Japanese.

Events have their reasons as text, so that a log can be read without anything else. Here the texts are known again by their
form. What no form fits is a person's own words, or those of a program that is not ours: it stays as it is.
"""

import re
from collections.abc import Mapping
from functools import cache

from meguri_monitoring.wording.wording import LANGUAGES, Language

REASONS: dict[str, tuple[str, str]] = {
    # --- why an episode ended
    "version {version} serves": ("version {version} answers now", "現在はバージョン {version} が稼働しています"),
    "version {version} no longer answers, version {now} serves": (
        "version {version} answers no more, version {now} does",
        "バージョン {version} の試行は終了し、現在はバージョン {now} が稼働しています",
    ),
    "version {version} is champion now": (
        "version {version} is the main model now",
        "バージョン {version} が本番モデルになりました",
    ),
    "version {version} is part of an A/B test now": (
        "version {version} is compared with another now",
        "バージョン {version} は比較の対象になりました",
    ),
    "version {version} is {role} now": (
        "version {version} is on trial now",
        "バージョン {version} の扱いが変わりました",
    ),
    "like the reference again in the last window": (
        "all looks as in training again in the last window",
        "直近の区間で、学習時の傾向に戻りました",
    ),
    "like the reference again for {windows} windows in a row": (
        "all looks as in training again for {windows} windows in a row",
        "{windows} 区間続けて、学習時の傾向に戻りました",
    ),
    "as good as before again": ("", "予測の品質が以前の水準に戻りました"),
    "as many predictions as usual again in the last window": ("", "直近の区間で、予測件数が通常に戻りました"),
    "as many predictions as usual again for {windows} windows in a row": (
        "",
        "{windows} 区間続けて、予測件数が通常に戻りました",
    ),
    "all predictions fit again in the last window": ("", "直近の区間で、データの形式がすべて想定どおりになりました"),
    "all predictions fit again for {windows} windows in a row": (
        "",
        "{windows} 区間続けて、データの形式がすべて想定どおりになりました",
    ),
    "predictions are asked for again": ("", "リクエストが再開しました"),
    "the spec no longer asks for this to be watched": (
        "its set-up no longer asks for this to be watched",
        "設定の変更により、監視の対象から外れました",
    ),
    # --- why it has not the reaction that the spec asks for
    "another episode had its reaction a moment ago: until {year}-{month}-{day} {time} UTC it is only told": (
        "another episode was reacted to a moment ago: until {year}-{month}-{day} {time} UTC people are only told",
        "直前に別の事象への対応を行ったため、{year}年{month}月{day}日 {time}（UTC）までは通知のみ行います",
    ),
    # --- what does not fit
    "predictions do not fit what the model was trained on: {why}": ("", "学習時の形式と一致しません（{why}）"),
    "the predictions have a column {column}, which is no feature of their reference": (
        "they have a column {column}, which the model was not trained on",
        "学習時にない列 {column} があります",
    ),
    "column {column} is {ours} in predictions and {theirs} in their table": (
        "column {column} is {ours} and not {theirs}",
        "列 {column} の型が {theirs} ではなく {ours} です",
    ),
    "the predictions have no column {column}, which their reference has": (
        "they have no column {column}",
        "列 {column} がありません",
    ),
    "{column} is {ours} in the predictions and a number in their reference": (
        "column {column} is {ours} and not a number",
        "列 {column} が数値ではなく {ours} です",
    ),
    # --- what a run waits for
    "new rows that show it are needed": ("new data that shows it is needed", "変化後の新しいデータが必要です"),
    "{rows} new rows that show it are needed": (
        "{rows} rows of new data that show it are needed",
        "変化後の新しいデータが {rows} 行必要です",
    ),
    "new rows for the first run are needed": ("data for the first training is needed", "初回の学習用データが必要です"),
    "{rows} new rows for the first run are needed": (
        "{rows} rows of data for the first training are needed",
        "初回の学習に {rows} 行のデータが必要です",
    ),
    "run {run} has no verdict yet": ("the training before has no result yet", "前回の学習の結果を待っています"),
    "version {versions} is tried beside the champion: the next run waits for the end of that": (
        "version {versions} is being tried, and the next training waits for the end of that",
        "バージョン {versions} を試行中のため、次の学習はその終了を待っています",
    ),
    # --- what becomes of a version
    "the gate holds": ("it passed its tests", "評価に合格しました"),
    "the gate does not hold: {rules}": ("it did not pass its tests: {rules}", "評価に合格しませんでした：{rules}"),
    "the gate holds, but the same model was rolled back before: `meguri promote` says yes": (
        "it passed its tests, but the same model was taken back before: `meguri promote` says yes",
        "評価に合格しましたが、以前に取り下げたものと同じモデルです（`meguri promote` で承認できます）",
    ),
    "{why}, but {tried}, and one is tried at a time": ("", "{why}（ただし {tried}。一度に試行できるのは一つです）"),
    "it was compared with {before}, but {now} serves now": ("", "比較の相手（{before}）が {now} に代わりました"),
    "version {version} is canary": ("version {version} is on trial", "バージョン {version} は試行中です"),
    "version {version}": ("", "バージョン {version}"),
    "no champion": ("none", "なし"),
    "rollback: an episode of {about} of version {version} asks for it: {what}": (
        "back to the version before, as is set up for this kind of episode",
        "この種類の事象に対する設定により、一つ前のバージョンに切り戻しました",
    ),
    "rollback: asked for by hand": ("back to the version before, asked for by hand", "手動で切り戻しました"),
    "rollback: {why}": ("back to the version before: {why}", "切り戻し：{why}"),
    "asked for by hand": ("", "手動での依頼"),
    "promoted by hand": ("", "手動での切り替え"),
    "{why}: version {version} is canary, step {step} of {steps}, {share}": (
        "{why}: version {version} is tried on {share} of the requests, step {step} of {steps}",
        "{why}。バージョン {version} がリクエストの {share} を試行中（{steps} 段階中 {step} 段階目）",
    ),
    "canary: version {version} answered {share} well, {requests} requests; it was the last step": (
        "version {version} answered {share} of the requests well ({requests}); it was the last step",
        "バージョン {version} はリクエストの {share}（{requests} 件）に問題なく回答し、最終段階を終えました",
    ),
    "canary: version {version} answered {share} well, {requests} requests; step {step} of {steps}, {next}": (
        "version {version} answered {share} of the requests well ({requests}) and goes on with {next}, step {step} of {steps}",
        "バージョン {version} はリクエストの {share}（{requests} 件）に問題なく回答し、{next} に進みました"
        "（{steps} 段階中 {step} 段階目）",
    ),
    "canary: version {version} is taken back at {share}: {why}": (
        "version {version} was tried on {share} of the requests and is taken back: {why}",
        "リクエストの {share} で試行したバージョン {version} を取り下げました：{why}",
    ),
    "{mine} of {requests} requests had no answer, {theirs} of {others} of the champion's, {limit} more are allowed": (
        "{mine} of {requests} requests had no answer, {theirs} of {others} of the other version's; {limit} more are allowed",
        "回答できなかったリクエストが {requests} 件中 {mine}（従来版は {others} 件中 {theirs}、許容差 {limit}）",
    ),
    "{slow} of {requests} requests took longer than {time} ms, {times} times the champion's 95th percentile; {limit} may": (
        "{slow} of {requests} requests took longer than {time} ms; {limit} may",
        "{requests} 件中 {slow} のリクエストで回答に {time} ミリ秒を超える時間がかかりました（許容 {limit}）",
    ),
    "its mean score is {mine} on {labels} labels, the champion's {theirs} on {others}, {limit} less is allowed": (
        "its mean score is {mine} ({labels} answers), the other version's {theirs} ({others}); {limit} less is allowed",
        "平均スコアが {mine}（{labels} 件）で、従来版は {theirs}（{others} 件、許容差 {limit}）",
    ),
    "A/B test: version {version} is better; {numbers}": (
        "version {version} was better in the comparison",
        "比較の結果、バージョン {version} が優れていました",
    ),
    "A/B test: none is better, the champion stays; {numbers}": (
        "none was better in the comparison",
        "比較の結果、より優れたバージョンはありませんでした",
    ),
    "A/B test: version {version} fails, the champion stays; {why}": (
        "version {version} failed in the comparison: {why}",
        "比較の途中でバージョン {version} に問題が見つかりました：{why}",
    ),
    "{why}: version {version} is asked beside for {share} of the requests": (
        "{why}: version {version} is tried unseen on {share} of the requests",
        "{why}。バージョン {version} を、リクエストの {share} で回答には使わずに試行します",
    ),
    "{why}: version {version} is asked beside, `meguri promote` makes it champion": (
        "{why}: version {version} is tried unseen until `meguri promote` has it answer",
        "{why}。バージョン {version} を、回答には使わずに試行します（`meguri promote` で切り替えられます）",
    ),
    "{why}: version {version} is shadow no more": (
        "{why}: version {version} is tried no more",
        "{why}。バージョン {version} の試行を終えました",
    ),
    # --- why somebody was not told
    "this is no URL that Apprise can send to: its scheme is unknown, or a part is missing or wrong": (
        "",
        "宛先の URL が正しくありません（種類が不明か、一部が欠けているか誤っています）",
    ),
    "the variable {name} is not set where monitoring runs": ("", "環境変数 {name} が監視サービスに設定されていません"),
}
"""By what stands in the log: English if others than these words are plainer, Japanese. What is called `why` is a reason too."""

BINS: dict[str, tuple[str, str]] = {
    "up to {high}": ("", "{high} 以下"),
    "below {high}": ("", "{high} 未満"),
    "above {low}": ("", "{low} 超"),
    "{low} or more": ("", "{low} 以上"),
    "{low} to {high}": ("", "{low}～{high}"),
    "all": ("", "すべて"),
    "any": ("", "すべて"),
    "missing": ("", "欠損"),
    "there": ("", "値あり"),
    "{count} others": ("", "その他 {count} 種類"),
    "not in the reference": ("new", "新しい値"),
}
"""Names of the bins of histograms: the same, by what is kept of them."""


FIELDS = {"version": r"\d+", "rows": r"\d+"}
"""What stands in a field; in others whatever is there, the least of it."""
TOLD_TOO = ("why", "before", "now", "tried")
"""Fields that are reasons themselves."""


LONGEST = 500
"""Letters up to which a reason is looked for among the forms: those of many fields take long for long texts."""


def reason(text: str, language: Language) -> str:
    """Tell a reason of the log. In Japanese the words of others stand in brackets."""
    told = _told(text, REASONS, language) if len(text) <= LONGEST else None
    if told is None:
        return text if language == "en" else f"「{text}」"
    return told


def bin_label(text: str, language: Language) -> str:
    """Tell the name of a bin."""
    return _told(text, BINS, language) or text


def _told(text: str, forms: Mapping[str, tuple[str, str]], language: Language) -> str | None:
    for form, words in forms.items():
        if found := _pattern(form).fullmatch(text):
            values = {
                name: reason(value, language) if name in TOLD_TOO else value
                for name, value in found.groupdict().items()
            }
            return (words[LANGUAGES.index(language)] or form).format_map(values)
    return None


@cache
def _pattern(form: str) -> re.Pattern[str]:
    parts = [
        f"(?P<{name}>{FIELDS.get(name, '.+?')})" if name else re.escape(text)
        for text, name in re.findall(r"([^{}]+)|\{(\w+)\}", form)
    ]
    return re.compile("".join(parts), re.DOTALL)
