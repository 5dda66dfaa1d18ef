"""Whatever text enters a page is text on it."""

from __future__ import annotations

import random
from html.parser import HTMLParser

from negbank.train.studies import page

PIECES = ["<script>alert(1)</script>", "<b>", "</td>", "&", "&lt;", '"', "'", "> ", "<img src=x onerror=y>", "a", "τ",
          "]]>", "<!--", "-->", "</title>", "</details>", "&#60;", "\u202e", "javascript:"]  # fmt: skip


class Read(HTMLParser):
    """Tags with their attributes, and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.alts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.alts += [value for name, value in attributes if name == "alt"]
        assert all(name in ("alt", "src", "class", "charset", "lang", "open") for name, _ in attributes)

    def handle_data(self, data):
        self.texts.append(data)


def test_text_is_text_wherever_it_enters(tmp_path):
    """What a browser's parser reads of a page is the text that was given, and only our tags."""
    choose = random.Random(0)
    (tmp_path / "x.png").write_bytes(b"png")
    for _ in range(250):
        words = ["".join(choose.choices(PIECES, k=choose.randint(1, 5))) for _ in range(14)]
        parts = [
            page.paragraph(words[0], "answer"), page.heading(words[1]), page.image(tmp_path / "x.png", words[2]),
            page.table((words[3],), [(words[4],)]), page.settings({words[5]: {"key": words[6]}}),
            page.meanings({words[7]: (words[8], words[9])}, words[10]), page.folded(words[11], [words[12]]), words[12],
        ]  # fmt: skip
        page.write(tmp_path / "page.html", words[13], parts)
        found = Read((tmp_path / "page.html").read_text())
        assert set(found.tags) <= {"html", "head", "meta", "title", "style", "body", "p", "h2", "img", "table", "tr",
                                   "th", "td", "div", "details", "summary"}  # fmt: skip
        assert found.tags.count("details") == 1
        assert found.alts == [words[2]]
        text = "".join(found.texts)
        where = [0]
        for i in (13, 0, 1, 3, 4, 6, 10, 8, 7, 9, 11, 12, 12):
            where.append(text.index(words[i], where[-1]))


def test_markup_is_what_was_made_as_such():
    bold = page.Html("<b>x</b>")
    assert page.table(("a",), [(bold,), ("<b>",)]) == (
        "<table><tr><th>a</th></tr><tr><td><b>x</b></td></tr><tr><td>&lt;b&gt;</td></tr></table>"
    )
    assert page.html(3.5) == "3.5"
