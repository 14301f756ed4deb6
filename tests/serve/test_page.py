"""The page at / and the dashboard: what can be checked without a browser or Grafana. The browser's
part is crates/fathom-lm/tests/serve_page.rs."""

import base64
import hashlib
import json
import re

from server import ROOT

PAGE = ROOT / "crates/fathom-serve/src/page/index.html"
DASHBOARD = ROOT / "docs/serve/grafana.json"


def test_the_policy_allows_exactly_this_script_and_style():
    page = PAGE.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page).group(1)
    for tag in ["script", "style"]:
        (part,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in " ".join(policy.split())
    assert "unsafe" not in policy
    assert not re.search(r'\son\w+="|\sstyle="', page), "the policy allows no inline attributes"


def test_the_page_is_one_file():
    page = PAGE.read_text()
    addresses = re.findall(r"https?://[^\s'\"]+", page)
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script\s+src|<link rel=.stylesheet|@import|url\(", page)


def test_the_server_serves_it(server):
    assert server.get("/") == PAGE.read_text()


def test_the_dashboard_asks_for_metrics_that_exist(server, client, model):
    client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=20
    )
    told = {key.split("{")[0] for key in server.metrics()}
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels:
        assert panel["title"] and panel["targets"]
        for target in panel["targets"]:
            names = re.findall(r"\bfathom_\w+", target["expr"])
            assert names, target
            missing = set(names) - told
            assert not missing, f"{panel['title']}: /metrics has no {missing}"
