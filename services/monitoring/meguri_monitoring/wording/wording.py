"""What people are told, in English and in Japanese side by side: plain words for readers who are no engineers."""

from datetime import UTC, datetime
from typing import Literal

from meguri_contracts.spec import EpisodeKind
from meguri_monitoring.wording.page_texts import PAGE
from meguri_monitoring.wording.timeline_texts import TIMELINE

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = ("en", "ja")

MESSAGES: dict[str, tuple[str, str]] = {
    # --- what an episode is about, in a few words
    "kind.drift": ("change in the incoming data", "入力データの変化"),
    "kind.prediction": ("change in the answers", "予測結果の変化"),
    "kind.missing": ("another share of missing values", "欠損値の割合の変化"),
    "kind.categories": ("values never seen before", "未知の値の出現"),
    "kind.schema": ("data that does not fit", "データ形式の不一致"),
    "kind.volume": ("unusual number of requests", "リクエスト数の変化"),
    "kind.silence": ("no requests", "リクエストの途絶"),
    "kind.performance": ("more mistakes than before", "予測精度の低下"),
    "kind.measure": ("unusual business number", "業務指標の変化"),
    "kind.evaluator": ("evaluator that fails", "評価プラグインの失敗"),
    # --- and in a sentence
    "happened.drift": (
        "The values of “{subject}” that {model} receives no longer look like the data it was trained on.",
        "モデル「{model}」に届く「{subject}」の値が、学習時のデータの傾向から外れています。",
    ),
    "happened.prediction": (
        "The answers of {model} (“{subject}”) are no longer distributed as they were in training.",
        "モデル「{model}」の予測結果（「{subject}」）の傾向が、学習時から変わっています。",
    ),
    "happened.missing": (
        "The share of missing values in “{subject}”, which {model} receives, is not what it was in training.",
        "モデル「{model}」に届く「{subject}」の欠損値の割合が、学習時と異なっています。",
    ),
    "happened.categories": (
        "“{subject}” has values that {model} never saw in training.",
        "モデル「{model}」に届く「{subject}」に、学習時にはなかった値が含まれています。",
    ),
    "happened.schema": (
        "Data for {model} does not fit what it expects.",
        "モデル「{model}」に届くデータの形式が、想定と異なっています。",
    ),
    "happened.volume": (
        "{model} receives many more or many fewer requests than before.",
        "モデル「{model}」へのリクエスト数が、これまでと大きく変わっています。",
    ),
    "happened.silence": (
        "{model} receives no requests any more.",
        "モデル「{model}」へのリクエストが途絶えています。",
    ),
    "happened.performance": (
        "{model} makes more mistakes than before.",
        "モデル「{model}」の予測精度が、以前より低下しています。",
    ),
    "happened.measure": (
        "The business number “{subject}” of {model} is not as it was.",
        "モデル「{model}」の業務指標「{subject}」が、これまでと異なる値になっています。",
    ),
    "happened.evaluator": (
        "The evaluator “{subject}”, which makes business numbers of the answers of {model}, fails.",
        "モデル「{model}」の予測結果から業務指標を計算する評価プラグイン「{subject}」が失敗しています。",
    ),
    "others": ("Also moved: {names}.", "ほかに変化が見られる項目：{names}"),
    # --- how bad
    "level.slight": ("Slight", "軽微"),
    "level.moderate": ("Moderate", "中程度"),
    "level.strong": ("Strong", "大きい"),
    "level.very strong": ("Very strong", "非常に大きい"),
    "bad.distance": (
        "{level}: the distance from the training data is {distance}; 0 would be no change.",
        "{level}（学習データからの距離 {distance}、変化がなければ 0）。",
    ),
    "bad.missing": (
        "That share is {points} percentage points away from training.",
        "学習時との差は {points} ポイントです。",
    ),
    "bad.categories": ("They are {share} of the values.", "値全体の {share} を占めています。"),
    "bad.schema": ("{value} rows could not be used.", "{value} 行のデータを利用できませんでした。"),
    "bad.volume": (
        "{value} requests a second; before it were {expected}.",
        "毎秒 {value} 件です（これまでは毎秒 {expected} 件）。",
    ),
    "bad.silence": (
        "No request for {value}; more than {expected} is unusual here.",
        "{value}にわたりリクエストがありません（通常は{expected}以内）。",
    ),
    "bad.accuracy": (
        "The share of right answers fell from {before} to {now}, as {labels} answers show whose truth is known.",
        "正解率が {before} から {now} に低下しました（正解が判明している {labels} 件による）。",
    ),
    "bad.error": (
        "The error ({metric}) went from {before} to {now}, as {labels} answers show whose truth is known.",
        "誤差（{metric}）が {before} から {now} に変わりました（正解が判明している {labels} 件による）。",
    ),
    "bad.measure": (
        "Its distance from what is usual is {value}; 0 would be no change.",
        "通常の値からの距離は {value} です（変化がなければ 0）。",
    ),
    "bad.evaluator": (
        "Requests set aside: {value}. Other numbers are not affected.",
        "保留中のリクエスト：{value} 件。ほかの指標への影響はありません。",
    ),
    # --- who
    "who.share": (
        "{share} of it comes from “{producer}”.",
        "変化の {share} は「{producer}」から届いたデータによるものです。",
    ),
    "who.name": ("“{producer}”", "「{producer}」"),
    "who.nobody": ("No single sender stands out.", "特定の送信元には絞り込めていません。"),
    "inputs.moved": (
        "The data that comes in has changed, too.",
        "入力データにも変化が見られます。",
    ),
    "inputs.same": (
        "Outputs changed, inputs did not: the cause is probably in the system, not in the data.",
        "出力は変化していますが、入力データに変化はありません。データではなく、システム側に原因がある可能性があります。",
    ),
    # --- what the system does
    "action.ignore": ("Nothing: this is how it was set up.", "設定により、対応は行いません。"),
    "action.notify": (
        "Nothing by itself. Please have a look.",
        "自動的な対応は行いません。ご確認をお願いいたします。",
    ),
    "action.retrain": (
        "It trains a new model as soon as there is enough new data. That one takes over only if it passes its tests.",
        "新しいデータが十分に集まり次第、モデルを再学習します。新しいモデルは、評価に合格した場合にのみ切り替わります。",
    ),
    "action.rollback": (
        "It goes back to the model that answered before.",
        "一つ前のモデルに切り戻します。",
    ),
    "action.taken_back": (
        "It ends the trial of version {version}: the main model answers everything again.",
        "バージョン {version} の試行を中止し、すべて本番モデルで応答します。",
    ),
    "because": ("({reason}.)", "（{reason}。）"),
    # --- the end
    "over.quiet": ("Things are as before again.", "通常の状態に戻りました。"),
    "over.replaced": (
        "Version {now} has taken the place of version {before}.",
        "バージョン {before} に代わり、バージョン {now} が稼働を開始しました。",
    ),
    "over.beside": (
        "It is over for version {before}, which was on trial.",
        "試行中のバージョン {before} に関する本件は終了しました。",
    ),
    "said": ("{reason}.", "{reason}。"),
    "done.nothing": (
        "The model was not changed: version {before} answers as before.",
        "モデルの変更は行っていません（バージョン {before} が引き続き稼働しています）。",
    ),
    "done.replaced": (
        "The model was changed: version {before} answered then, version {now} answers now.",
        "モデルをバージョン {before} からバージョン {now} に切り替えました。",
    ),
    # --- messages
    "subject.opened": ("[meguri] {model}: {what}", "【meguri】{model}：{what}を検知しました"),
    "subject.resolved": ("[meguri] {model}: over: {what}", "【meguri】{model}：{what}が解消しました"),
    "named": ("{kind} ({subject})", "{kind}（{subject}）"),
    "intro.opened": (
        "Something about the model “{model}” needs your attention.",
        "モデル「{model}」の監視で次の事象を検知しましたので、お知らせいたします。",
    ),
    "intro.resolved": (
        "What we told you about the model “{model}” is over.",
        "モデル「{model}」で発生していた次の事象が解消しましたので、お知らせいたします。",
    ),
    "outro.opened": (
        "You will hear of this once more: when it is over.",
        "本件が解消しましたら、あらためてお知らせいたします。",
    ),
    "outro.resolved": ("This was the last message about it.", "本件に関するお知らせは以上です。"),
    "line": ("{label}: {text}", "{label}：{text}"),
    "label.what": ("What happened", "発生した事象"),
    "label.ended": ("What is over", "解消した事象"),
    "label.since": ("Since", "検知日時"),
    "label.until": ("Until", "解消日時"),
    "label.lasted": ("It took", "継続時間"),
    "label.bad": ("How bad", "変化の度合い"),
    "label.who": ("Who causes it", "主な要因"),
    "label.inputs": ("Inputs", "入力データ"),
    "label.does": ("What the system does", "システムの対応"),
    "label.why": ("Why it is over", "解消の理由"),
    "label.done": ("What was done", "実施した対応"),
    "label.report": ("Report", "レポート"),
    "label.trace": ("An example", "一例"),
    "label.version": ("Version", "モデルのバージョン"),
    "example.trace": ("trace {trace} (`meguri trace {trace}`)", "トレース {trace}（`meguri trace {trace}`）"),
    "example.prediction": (
        "prediction {prediction} (`meguri why {prediction}`)",
        "予測 {prediction}（`meguri why {prediction}`）",
    ),
    # --- times
    "time": ("{time:%Y-%m-%d %H:%M} UTC", "{time.year}年{time.month}月{time.day}日 {time:%H:%M}（UTC）"),
    "time.exact": (
        "{time:%Y-%m-%d %H:%M:%S} UTC",
        "{time.year}年{time.month}月{time.day}日 {time:%H:%M:%S}（UTC）",
    ),
    "lasted.days": ("{days} d {hours} h", "{days}日{hours}時間"),
    "lasted.hours": ("{hours} h {minutes} min", "{hours}時間{minutes}分"),
    "lasted.days only": ("{days} d", "{days}日"),
    "lasted.hours only": ("{hours} h", "{hours}時間"),
    "lasted.minutes": ("{minutes} min", "{minutes}分"),
    "lasted.seconds": ("{seconds} s", "{seconds}秒"),
    "took": ("{seconds} seconds", "{seconds}秒"),
    # --- amounts
    "points": ("{value} percentage points", "{value} ポイント"),
    "times": ("{value} times", "{value} 倍"),
}
"""By key: English, Japanese."""
TEXTS = MESSAGES | PAGE | TIMELINE


def say(key: str, language: Language, **values: object) -> str:
    """Return a text with its values in place."""
    return TEXTS[key][LANGUAGES.index(language)].format(**values)


def sentences(language: Language, *said: str) -> str:
    """Put sentences one after the other."""
    return (" " if language == "en" else "").join(one for one in said if one)


def moment(time: datetime, language: Language, *, exact: bool = False) -> str:
    """Return a time to the minute, or to the second."""
    return say("time.exact" if exact else "time", language, time=time.astimezone(UTC))


def duration(seconds: float, language: Language) -> str:
    """Return a time span in its two largest units."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    unit = "days" if days else "hours" if hours else "minutes" if minutes else "seconds"
    parts = {"days": days, "hours": hours % 24, "minutes": minutes % 60, "seconds": round(seconds)}
    is_even = (unit == "days" and not parts["hours"]) or (unit == "hours" and not parts["minutes"])
    return say(f"lasted.{unit}{' only' if is_even else ''}", language, **parts)


def took(seconds: float, language: Language) -> str:
    """Return how long something took: below a minute to the part of a second."""
    return duration(seconds, language) if seconds >= 60 else say("took", language, seconds=number(seconds))


def amount(about: EpisodeKind, value: float, language: Language, *, of_shares: bool = False) -> str:
    """Return how bad an episode of a kind is, with its unit; `of_shares`: a quality that is a share of the answers."""
    match about:
        case "missing":
            return say("points", language, value=number(100 * value))
        case "performance" if of_shares:
            return say("points", language, value=number(100 * value))
        case "categories":
            return percent(value)
        case "volume":
            return say("times", language, value=number(value))
        case _:
            return number(value)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float) -> str:
    return f"{value:.0%}" if abs(value) >= 0.995 or value == 0 else f"{value:.1%}"
