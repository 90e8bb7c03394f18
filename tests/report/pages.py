"""What the tests of the report share: a page taken apart, and a name that would break one that is not escaped."""

import json
import re
from html.parser import HTMLParser

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> $\\frac{1}$ {{ 7*7 }} <!-- \' & é'
VOID = {"meta", "link", "img", "br", "col"}


class Page(HTMLParser):
    """The tags, the visible text and the scripts of a page; checks that tags are closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.scripts, self.open = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        (self.scripts if inside == "script" else [] if inside == "style" else self.text).append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def numbers(self):
        return json.loads("".join(self.scripts))
