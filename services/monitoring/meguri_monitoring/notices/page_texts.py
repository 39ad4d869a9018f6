"""What stands on the pages of reports, in English and in Japanese side by side."""

PAGE: dict[str, tuple[str, str]] = {
    "page.episode": ("Report of an episode", "エピソードのレポート"),
    "page.days": ("Report of {days} days", "直近{days}日間のレポート"),
    "page.open": ("open", "継続中"),
    "page.acknowledged": ("open, seen by {actor}", "継続中（{actor} が確認済み）"),
    "page.resolved": ("over", "解消済み"),
    "page.lasts": ("for {lasted} now", "発生から{lasted}"),
    "page.lasted": ("after {lasted}", "{lasted}で解消"),
    "page.note": ("Note", "メモ"),
    "page.changed": ("What changed", "変化の内容"),
    "page.changed.how": (
        "Grey is how the values were when the model was trained, orange is how they were when the episode "
        "began. Where the two lie over each other, nothing changed.",
        "灰色は学習時、オレンジ色は検知時の値の分布です。二つが重なっている部分には変化がありません。",
    ),
    "page.changed.measure": (
        "Grey is how the numbers usually were since this version answers, orange is how they were when the episode "
        "began. Where the two lie over each other, nothing changed.",
        "灰色はこのバージョンの稼働開始後の通常の値、オレンジ色は検知時の値の分布です。"
        "二つが重なっている部分には変化がありません。",
    ),
    "page.reference": ("in training", "学習時"),
    "page.reference.measure": ("usually", "通常時"),
    "page.current": ("when it began", "検知時"),
    "page.score": ("distance {score}, limit {threshold}", "距離 {score}（しきい値 {threshold}）"),
    "page.parts": ("Who sent it", "送信元"),
    "page.part": ("{share} of the change", "変化の {share}"),
    "page.rows": ("{rows} rows", "{rows} 行"),
    "page.over time": ("Over time", "時間の経過"),
    "page.over time.how": (
        "Each point is a window of predictions of version {version}: how far “{subject}” was from training. Orange ones count "
        "as changed: above the dashed line, and by more than chance.",
        "各点はバージョン {version} の予測をまとめた区間で、「{subject}」が学習時からどれだけ離れているかを示します。"
        "オレンジ色の点は、破線を超え、かつ偶然とは考えにくい変化と判定された区間です。",
    ),
    "page.over time.volume": (
        "Each point is a window of predictions of version {version}: how many came in a second.",
        "各点はバージョン {version} の予測をまとめた区間で、1 秒あたりの件数を示します。",
    ),
    "page.over time.measure": (
        "Each point is a window of the numbers of version {version}: how far “{subject}” was from what is usual. Orange ones "
        "count as changed: above the dashed line, and by more than chance.",
        "各点はバージョン {version} の指標をまとめた区間で、「{subject}」が通常の値からどれだけ離れているかを示します。"
        "オレンジ色の点は、破線を超え、かつ偶然とは考えにくい変化と判定された区間です。",
    ),
    "page.done": ("What was done", "経過と対応"),
    "page.nothing": ("Nothing yet.", "まだありません。"),
    "page.closer": ("For a closer look", "詳細情報"),
    "page.whatif": (
        "Would it have been one under another rule, or with another version?",
        "別のルールや別のバージョンならどう判定されたかは、次のコマンドで確かめられます。",
    ),
    "page.samples": ("Predictions, for example", "予測の例"),
    "page.traces": ("Traces of these", "トレース"),
    "page.windows": (
        "Windows, by their place in the stream of predictions",
        "判定に用いた区間（予測ストリームの番号）",
    ),
    "page.window": ("Window", "区間"),
    "page.from": ("From", "開始"),
    "page.to": ("To", "終了"),
    "page.row count": ("Rows", "行数"),
    "page.until": ("Ended", "終了日時"),
    "page.distance": ("Distance", "距離"),
    "page.limit": ("Limit", "しきい値"),
    "page.bin": ("Values", "値"),
    "page.there": ("there", "値あり"),
    "page.missing": ("missing", "欠損"),
    "page.numbers": ("The numbers", "数値で見る"),
    "page.made": ("Made {time}", "{time} 作成"),
    "page.as data": ("as data (JSON)", "データ（JSON）"),
    "page.quiet": (
        "{model} had no episode in these {days} days.",
        "直近{days}日間、「{model}」に異常は見られませんでした。",
    ),
    "page.had": (
        "{model} had {count} in these {days} days; {open}.",
        "直近{days}日間に、「{model}」では{count}が発生しました（{open}）。",
    ),
    "page.one episode": ("one episode", "1件の事象"),
    "page.episodes count": ("{count} episodes", "{count}件の事象"),
    "page.none open": ("none is open", "すべて解消済み"),
    "page.some open": ("{count} still open", "うち{count}件は継続中"),
    "page.episodes": ("Episodes", "発生した事象"),
    "page.volume": ("Predictions", "予測件数"),
    "page.volume.how": ("{rows} in all; each column is {span}.", "合計 {rows} 件（棒 1 本は{span}）。"),
    "page.quality": ("Quality", "予測の品質"),
    "page.quality.accuracy": (
        "The share of right answers among those whose truth is known; each point is {span}.",
        "正解が判明している予測のうち、正しかったものの割合です（1 点は{span}）。",
    ),
    "page.quality.mae": (
        "The mean error of the answers whose truth is known; each point is {span}.",
        "正解が判明している予測の平均誤差です（1 点は{span}）。",
    ),
    "page.no labels": ("No truth about these predictions is known.", "正解が判明している予測はありません。"),
    "page.versions": ("Versions that answered", "稼働したバージョン"),
    "page.champion": ("version {version} answers now", "現在の稼働バージョンは {version}"),
    "page.no champion": ("no version answers yet", "稼働中のバージョンはありません"),
    "page.version": ("Version {version}", "バージョン {version}"),
}
"""By key: English, Japanese."""
