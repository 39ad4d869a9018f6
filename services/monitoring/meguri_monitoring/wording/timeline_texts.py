"""What stands in the timeline of an episode, in English and in Japanese side by side."""

TIMELINE: dict[str, tuple[str, str]] = {
    "began": ("It began: {what}.", "検知：{what}。"),
    "follows.ignore": ("Nobody is told: this is how it was set up.", "設定により、通知は行いません。"),
    "follows.notify": ("An alert was raised.", "アラートを発しました。"),
    "follows.retrain": (
        "An alert was raised, and a new model is to be trained.",
        "アラートを発し、モデルの再学習を求めました。",
    ),
    "follows.taken back": (
        "The trial of this version ends, and the main model answers everything again.",
        "このバージョンの試行を中止し、すべて本番モデルで応答します。",
    ),
    "follows.rollback": (
        "An alert was raised, and the model is to go back to the version before.",
        "アラートを発し、一つ前のバージョンへの切り戻しを求めました。",
    ),
    "worsened": (
        "It has become at least twice as bad: {now} now, {before} when that was last told.",
        "前回のお知らせの 2 倍以上に悪化しました（{before} → {now}）。",
    ),
    "worsened.subject": (
        "It has become at least twice as bad ({subject}): {now} now, {before} when that was last told.",
        "「{subject}」が、前回のお知らせの 2 倍以上に悪化しました（{before} → {now}）。",
    ),
    "acknowledged": ("{actor} has seen it.", "{actor} が確認しました。"),
    "acknowledged.note": ("{actor} has seen it: {note}.", "{actor} が確認しました（メモ：「{note}」）。"),
    "over": ("It is over: {reason}.", "解消しました。{reason}。"),
    "told.opened": ("{target} was told that it began.", "発生を {target} に通知しました。"),
    "told.resolved": ("{target} was told that it is over.", "解消を {target} に通知しました。"),
    "not told.opened": (
        "{target} could not be told that it began: {error}.",
        "発生を {target} に通知できませんでした：{error}。",
    ),
    "not told.resolved": (
        "{target} could not be told that it is over: {error}.",
        "解消を {target} に通知できませんでした：{error}。",
    ),
    "refilled": (
        "{actor} had the numbers of {evaluator} computed again: {written} of {rows} rows were missing and are there now.",
        "{actor} が「{evaluator}」の指標を再計算し、{rows} 行のうち欠けていた {written} 行を補いました。",
    ),
    "refilled.left out": (
        "{actor} had the numbers of {evaluator} computed again: {written} of {rows} rows were missing and are there now, "
        "{left_out} were left out by its writer again.",
        "{actor} が「{evaluator}」の指標を再計算し、{rows} 行のうち欠けていた {written} 行を補いました。"
        "{left_out} 行は、書き込みの際に再び除かれました。",
    ),
    "postponed": ("A new model is wanted and waits: {reason}.", "モデルの再学習を待っています：{reason}。"),
    "training": ("Training began on {rows} rows.", "{rows} 行のデータで学習を開始しました。"),
    "trained": (
        "A model was trained on {rows} rows in {time}.",
        "{rows} 行のデータによる学習を終えました（所要時間 {time}）。",
    ),
    "not trained": ("Training failed: {reason}.", "学習に失敗しました：{reason}。"),
    "rejected": (
        "Version {version} was turned away: {reason}.",
        "バージョン {version} への切り替えを見送りました：{reason}。",
    ),
    "asked": (
        "Version {version} waits for somebody's yes: {reason}.",
        "バージョン {version} は承認を待っています：{reason}。",
    ),
    "champion": (
        "Version {version} answers from now on: {reason}.",
        "バージョン {version} が稼働を開始しました：{reason}。",
    ),
    "champion.same": (
        "Version {version} goes on answering: {reason}.",
        "バージョン {version} が引き続き稼働します：{reason}。",
    ),
}
"""By key: English, Japanese."""
