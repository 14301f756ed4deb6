"""Renders small templates with HuggingFace transformers, into expected.json.

    pip install transformers==5.24.0 jinja2==3.1.6
    python generate.py

Every snippet was written for this file and tests one rule of Jinja2 or Python. The environment is
that of `apply_chat_template`, with the clock fixed at 26 July 2024. If a snippet raises an exception
in Python, its text is null, and the name of the exception is recorded.
"""

import datetime
import json
import pathlib
import sys

import jinja2
import transformers
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent
assert (transformers.__version__, jinja2.__version__) == ("5.24.0", "3.1.6")


class StoppedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


chat_template_utils.datetime = StoppedClock

VARIABLES = {
    "messages": [
        {"role": "system", "content": "Be brief.\r\nAlways."},
        {"role": "user", "content": " What is 2+2?\r\n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFour"},
        {"role": "user", "content": "Thanks"},
    ],
    "tools": None,
    "documents": None,
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "n": 7,
    "x": 2.5,
    "s": "héllo wörld",
    "l": [3, 1, 2],
    "d": {"b": 1, "a": None, "c": [1, {"e": "f"}]},
    "rows": [{"k": "x", "v": 1}, {"k": "Y", "v": 2}, {"k": "x", "v": 3}, {"k": None}],
    "empty": [],
}

SNIPPETS = {}


def group(name, *sources):
    assert name not in SNIPPETS
    SNIPPETS[name] = list(sources)


def each(pattern, *values):
    return [pattern.replace("@", value) for value in values]


group(
    "line_ends",
    "a\r\nb\rc\nd",
    "a\r\n",
    "a\r",
    "a\n",
    "a\n\n",
    "a\r\n\r\n",
    "a\n\r",
    "a\r\r",
    "\r\n",
    "\r\n\r\n",
    "{% if true %}\r\na\r\n{% endif %}\r\nb",
    "{% if true %}\ra\r{% endif %}\rb",
    "{{ 'x\r\ny' }}",
    "{{ 'x\ry' }}",
    "{{ 'x\r\ny' | length }}",
    "{{ 'x\\r\\ny' | length }}",
    "{{ 'x\\r\\ny' }}",
    "{{ '\\r' == '\r' }}",
    "{{ 'a\\\r\nb' }}",
    "{{ messages[1].content }}|{{ messages[1].content | length }}",
    "{{ messages[1].content | trim }}|",
    "{# a\r\n comment #}\r\nb",
    "  \r\n  {%- if true %}  \r\n b {% endif -%}  \r\n c",
    "{% raw %}a\r\nb\r{{ c }}{% endraw %}",
    "a\r\n  {% if true %}\r\n  b\r\n  {% endif %}\r\nc\r\n",
    "x\r\n    {{ 1 }}\r\n",
    "x\r    {% if true %}y{% endif %}",
    "{% set t %}\r\na\r\n{% endset %}{{ t | length }}",
    "{{ 'a\r\nb'.split('\n') }}",
    "{{ ['a\r\n', 'b\r'] | tojson }}",
    "{{ messages | tojson }}",
    "{{ messages[0].content.split('\\r') }}",
    "{{ messages[0].content.splitlines() }}",
    "a\u2028b\u0085c\x0bd\x0ce",
    "{{ 'a\u2028b\u0085c\x0bd\x0ce'.splitlines() }}",
    "{{ 'a\u2028b' }}",
)
group(
    "white_space",
    "a {%- if true -%} b {%- endif -%} c",
    "a {%+ if true +%} b {%+ endif +%} c",
    "  {%+ if true %}b{% endif %}",
    "  {% if true +%}\nb{% endif %}",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "a\n\t {# c #}\nb",
    "a\n  {#- c -#}\n  b",
    "a  {{- 1 -}}  b",
    "{% if true %}\n\nb{% endif %}",
    "{% if true -%}\n\n b{% endif %}",
    "\n\n{% if true %}x{% endif %}\n\n",
    "{{ 'x' }}\n{{ 'y' }}\n",
    "  {{ 'x' }}  \n",
    "\u00a0{%- if true %}x{% endif %}\u00a0",
    "x\u3000{{- 1 }}",
    "  x {% if true %}y{% endif %}",
    "a\n\u00a0{% if true %}b{% endif %}",
    "a\n\x0c{% if true %}b{% endif %}",
    "{% raw -%}  a  {%- endraw %}  b",
    "{%- raw %} a {% endraw -%} b",
    "{% raw +%}\na{% endraw %}",
    "{% raw %}\na\n{% endraw %}\nb",
    "{%if true%}x{%endif%}",
    "{{'x'}}",
    "{%\nif true\n%}x{%\nendif\n%}",
    "{% generation %}a{% endgeneration %}",
    "a {%- generation -%} b {%- endgeneration -%} c",
    "a\n  {%+ generation +%}\n b\n  {%+ endgeneration +%}\n c",
    "{# {% broken #}x",
    "{# a #}{# b #}x",
    "a{#- b -#} c",
    "{{ '{{' }}{{ '%}' }}{{ \"#}\" }}",
    "}} %} #} { {",
    "{% if true %}{# c #}\nx{% endif %}",
    "x{# c #}\ny",
    "{% for i in [1,2] %}\n  {{ i }}\n{% endfor %}\nz",
    "a{% if true %}\n{% endif %}\n{% if true %}\n{% endif %}b",
)
group(
    "none",
    "{{ none }}",
    "{{ None }}",
    "[{{ tools }}]",
    *each("{% for x in @ %}x{% endfor %}", "none", "tools", "1", "1.5", "true", "missing", "''", "'ab'", "d", "[]", "{}"),
    *each("{% for a, b in @ %}{{ a }}{{ b }};{% endfor %}", "none", "missing", "[1]", "[none]", "['ab']", "['abc']", "[[1,2],[3,4]]", "d.items()", "['a']", "[(1,2)]", "[{'x': 1, 'y': 2}]"),
    "{% for x in none %}a{% else %}b{% endfor %}",
    "{% for x in missing %}a{% else %}b{% endfor %}",
    "{% for x in tools if x %}a{% endfor %}",
    *each("{{ none | @ }}", "length", "count", "list", "join", "join(',')", "first", "last", "sort", "unique", "unique | list", "reverse", "reverse | list", "map('upper')", "map('upper') | list", "select | list", "sum", "min", "max", "items", "items | list", "tojson", "string", "upper", "lower", "title", "capitalize", "trim", "int", "float", "abs", "round", "replace('a', 'b')", "default('x')", "default('x', true)", "d('x', boolean=true)", "e", "escape", "safe", "indent", "batch(2) | list", "slice(2) | list", "dictsort", "groupby('x')", "selectattr('x') | list", "rejectattr('x') | list", "map(attribute='x') | list", "wordcount", "center(8)", "truncate(3)", "format", "pprint", "forceescape", "urlencode", "filesizeformat"),
    *each("{{ missing | @ }}", "length", "list", "join", "first", "last", "sort", "unique | list", "reverse | list", "map('upper') | list", "select | list", "sum", "min", "max", "items | list", "tojson", "string", "upper", "lower", "title", "capitalize", "trim", "int", "float", "abs", "round", "replace('a', 'b')", "default('x')", "default", "e", "safe", "indent", "dictsort", "selectattr('x') | list", "groupby('x')", "wordcount", "batch(2) | list"),
    "{{ none.x }}",
    "{{ none['x'] }}",
    "{{ none[0] }}",
    "{{ none.x is defined }}",
    "{{ none.x.y }}",
    "{{ none.x() }}",
    "{{ none.items() }}",
    "{{ missing.x }}",
    "{{ missing['x'] }}",
    "{{ missing.x is defined }}",
    "{{ missing() }}",
    "{{ missing.items() }}",
    "{{ missing }}",
    "[{{ missing ~ 'x' }}]",
    "{{ none ~ 'x' }}",
    *each("{{ @ }}", "none + 'x'", "'x' + none", "none + 1", "none + none", "missing + 'x'", "'x' + missing", "missing + 1", "1 + missing", "[1] + none", "none * 2", "missing * 2", "none < 1", "1 < none", "none > none", "none <= none", "none == none", "none != none", "none == false", "none == 0", "none == missing", "missing == missing", "missing == other", "missing != missing", "missing < 1", "1 > missing", "missing == ''", "missing == none", "not none", "not missing", "none and 1", "none or 1", "missing or 1", "-none", "-missing", "+none", "'a' in none", "'a' not in none", "'a' in missing", "1 in 5", "none in [none]", "none in 'abc'", "missing in 'abc'", "1 in 'abc'", "none in {}", "missing in []", "missing in [missing]", "tools[1:]", "missing[1:]", "none % 2", "none // 2", "none ** 2", "missing % 2", "missing // 1"),
    "{{ tools is none }}{{ tools is defined }}{{ tools is iterable }}{{ tools is mapping }}{{ tools is sequence }}",
    "{{ tools | length > 0 }}",
    "{% if tools %}a{% else %}b{% endif %}",
    "{% if tools is not none and tools | length %}a{% else %}b{% endif %}",
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}",
    "{% for t in (tools or []) %}x{% endfor %}-",
    "{{ messages[2].tool_calls }}",
    "{% for c in messages[2].tool_calls %}x{% endfor %}",
    "{% if messages[2].tool_calls is defined %}yes{% endif %}",
    "{{ messages[0].tool_calls is defined }}",
    "{% if messages[0].tool_calls %}a{% endif %}{% for c in messages[0].tool_calls %}x{% endfor %}-",
    "{{ messages[0].content.nope is defined }}",
    "{{ messages[0].nope.nope }}",
    "{{ messages[9] }}",
    "{{ messages[9].role }}",
    "{{ messages[-9] is defined }}",
    "{{ messages['x'] is defined }}",
    "{{ messages.x is defined }}",
    "{{ ({}).x.y }}",
    "{{ (missing | default({})).x }}",
    "{% set q = missing %}{{ q is defined }}",
    "{{ [missing, none] }}",
    "{{ {'a': missing} }}",
    "{{ [missing] | tojson }}",
    "{{ 'a' if false }}",
    "{{ ('a' if false) is defined }}",
    "{{ ('a' if false) ~ 'b' }}",
    "{{ ('a' if false).x }}",
    "{{ namespace(a=1).b is defined }}",
    "{{ namespace(a=1).b }}",
    "{{ namespace(a=1).b.c }}",
)
group(
    "operators",
    *each("{{ @ }}", "'a' + 1", "1 + 'a'", "'a' ~ 1", "1 ~ 2", "'a' + 'b'", "[1] + [2]", "[1] + 'a'", "{} + {}", "(1, 2) + (3,)", "[1] + (2,)", "1 + 2.0", "true + true", "true + 1", "1 + 1", "'a' - 'b'", "3 - 4", "3 - 1.0", "'ab' * 2", "2 * 'ab'", "'ab' * -1", "'ab' * 1.5", "'a' * 'b'", "[1] * 2", "[0] * true", "(1,) * 2", "2 * 3", "2 * 3.0", "true * 3", "{} * 2", "7 / 2", "6 / 2", "7 // 2", "-7 // 2", "7 // -2", "-7 % 2", "7 % -2", "-7 % 3", "7.5 // 2", "-7.5 // 2", "-7.5 % 2", "7.5 % -2", "1 / 0", "1 // 0", "1 % 0", "1.0 / 0", "1.0 % 0", "2 ** 3", "2 ** -1", "2.0 ** 3", "2 ** 0.5", "0 ** 0", "0 ** -1", "-2 ** 2", "2 ** 3 ** 2", "2 ** 62", "2 ** 63", "2 ** 64", "2 ** 100", "9223372036854775807 + 1", "9223372036854775807 * 2", "10 ** 25", "1e16", "1e15", "123456789012345678", "1e400", "0.1 + 0.2", "1e-5", "100000.0", "1_000", "0x1f", "0b101", "0o17", "5 % 3.0", "'%s' % 'a'", "'%d-%s' % (1, 'b')", "'%s' % [1]", "'a%%' % ()", "not 1", "not 'a'", "not []", "1 == 1.0", "1 == true", "'1' == 1", "[1] == [1.0]", "(1,) == [1]", "{'a': 1} == {'a': 1.0}", "'a' < 'b'", "'a' < 1", "'B' < 'a'", "[1, 2] < [1, 3]", "[1] < [1, 0]", "[1] < ['a']", "{} < {}", "true < 2", "1 < 2 < 3", "1 < 3 < 2", "1 == 1 == 1", "1 < 2 > 1", "'a' in 'abc'", "'' in 'abc'", "'a' in ['a']", "'a' in {'a': 1}", "1 in {'a': 1}", "1 in [1.0]", "true in [1]", "'a' not in 'b'", "[1] in [[1]]", "not 'a' in 'abc'", "1 and 0", "1 and 'x'", "0 or ''", "[] or 'x'", "'' and 1", "1 if 0 else 2", "1 if 1 else 2", "1 if 0 else 2 if 0 else 3", "-5", "--5", "- 5 | abs", "-5 | abs", "+5", "1 + 2 ~ 3", "1 ~ 2 + 3", "'a' ~ 'b' * 2", "2 * 3 ~ 4", "1 + 2 * 3", "(1 + 2) * 3", "10 - 3 - 2", "2 * 3 % 4", "1 < 2 and 2 < 3", "1 or missing.x", "0 and missing.x", "'a' 'b'", "\"a\" 'b' ~ 'c'", "1.5.real", "'abc' | length + 1", "1 + 'abc' | length", "'a' ~ 'bc' | upper", "not none | default(1)", "x is defined and x", "x is not defined", "not x is defined", "1 is number and true", "n % 2 == 1", "n is even or n is odd", "true", "True", "false", "TRUE", "1.0", "1.50", ".5", "5.", "1e3", "1E3", "1e+3", "07", "'\\x41\\u00e9\\n'", "'\\q'", "'\\''", "'\\101'", "'\\U0001F600'", "'\\t|\\\\|\\\"'", "'\\/'", "'a\\\nb'"),
    "{{ true and false or true }}",
    "{{ [] and missing }}",
    "{{ 1 if missing else 2 }}",
    "{{ x if x is defined }}",
    "{{ 3 > 2 ~ '' }}",
    "{{ 1.0 }} {{ 2.50 }} {{ 1e100 }} {{ 1.0e5 }} {{ 3 / 1 }}",
    "{{ 1e16 | int }}",
    "{{ (7 / 2) | int }} {{ '7.9' | int }} {{ ' 12 ' | int }} {{ 'x' | int }} {{ 'x' | int(5) }} {{ '0x1f' | int(base=16) }} {{ '1f' | int(0, 16) }} {{ '1e3' | int }} {{ -2.7 | int }} {{ true | int }} {{ [] | int }}",
    "{{ '1.5' | float }} {{ 'x' | float }} {{ 'x' | float(2.5) }} {{ 3 | float }} {{ 'inf' | float }} {{ 'nan' | float }} {{ '1e3' | float }}",
)
group(
    "subscripts",
    *each("{{ @ }}", "s[0]", "s[1]", "s[-1]", "s[99]", "s[99] is defined", "s['0']", "s[1:3]", "s[:-2]", "s[::-1]", "s[::2]", "s[5:2]", "s[-3:]", "s[:100]", "s[1:'a']", "s[::0]", "s[none:2]", "l[0]", "l[-1]", "l[9]", "l['0']", "l[0:2]", "l[::-1]", "l[1.0]", "l[true]", "l[1:][0]", "l[-2:]", "l[10:]", "d['a']", "d['c'][1]['e']", "d['c'][1].e", "d.b", "d[0]", "d['zz']", "d.zz is defined", "d[missing]", "d[none]", "d[[1]]", "n[0]", "n.x", "x[1]", "(1, 2)[0]", "(1, 2)[1:]", "(1, 2, 3)[::-1]", "{'a': 1}['a']", "{'a': 1}.a", "{1: 2}[1]", "{1: 2}['1']", "{true: 2}[1]", "{1.0: 2}[1]", "messages[0]['role']", "messages[0]['role'][0]", "messages[-1].content[0]", "messages[1:] | length", "messages[1:][0].role", "messages[::2] | map(attribute='role') | list", "messages[n]", "messages.0.role", "messages.0['role']", "l.0", "d.c.1.e", "d.items", "d.get", "d.keys() | list", "range(5)[2]", "range(5)[1:3]", "range(5)[9]", "range(5)[-1]", "'abc'[1]", "'abc'.1", "1[0]", "d.items()[0]", "d.keys()[0]", "'x'.upper", "s.nope", "l.nope", "l.nope.nope"),
    "{% set items = {'items': 5, 'keys': 6} %}{{ items.items }}|{{ items['items'] }}|{{ items.keys }}",
    "{% set q = {'values': [1]} %}{{ q.values }}|{{ q['values'] }}",
    "{{ messages[0].items() | list }}",
    "{{ messages[0].get('role') }}{{ messages[0].get('zz') }}{{ messages[0].get('zz', 'dflt') }}",
    "{{ {'a': {'b': 1}}.a.b }}",
    "{{ {'get': 1}.get }}",
    "{{ {'length': 1}.length }}",
    "{{ 'abc'.__class__ }}",
    "{{ d.__class__ }}",
    "{{ l.append(4) }}",
    "{{ d.update({'z': 1}) }}",
    "{{ l.pop() }}",
    "{{ l.index(1) }}{{ l.count(1) }}",
    "{{ l.index(9) }}",
    "{{ l.copy() }}",
    "{{ d.copy() }}",
)
group(
    "values",
    *each("{{ @ }}", "[]", "{}", "()", "(1,)", "(1, 2)", "[1, 'a', none, true, 1.5]", "{'a': 1, 'b': [1, 2]}", "{'a': (1, 2)}", "[(1, 'x')]", "['it\\'s']", "['\"']", "['\\'\"']", "['a\\nb']", "['\\\\']", "['é']", "['\\x00\\x7f\\xa0\\xad']", "['\\u200b']", "['😀']", "['\\ue000']", "['\\u2028']", "d", "l", "rows", "messages[1]", "range(3)", "range(1, 5, 2)", "range(0)", "d.items()", "d.keys()", "d.values()", "{1: 2, none: 3, true: 4, 1.5: 5}", "{(1, 2): 3}", "{[1]: 2}", "dict(a=1, b=2)", "dict([('a', 1)])", "dict({'a': 1}, b=2)", "dict()", "namespace(a=1)", "[1, 2,]", "{'a': 1,}", "1, 2", "(1), 2", "[[]]", "[{}]", "{'a': 1, 'a': 2}", "[1.0, 1e20, 1e-7]", "range", "joiner(', ')", "loop", "self", "[x for x in l]"),
    "{{ loop is defined }}",
    "{{ raise_exception('no') }}",
    "{{ raise_exception() }}",
    "{{ raise_exception(message='no') }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}",
    "{% set j = joiner(', ') %}{{ j() }}a{{ j() }}b",
)
group(
    "tojson",
    *each("{{ @ | tojson }}", "none", "true", "1", "1.0", "1e20", "1e-7", "'é\"\\\\<>&\\''", "'\\x00\\x1f\\x7f\\u2028'", "[]", "{}", "[1, [2]]", "(1, 2)", "{'a': none}", "{1: 2}", "{none: 1, true: 2, 1.5: 3}", "{(1,): 2}", "range(3)", "range(3) | list", "d", "d.items()", "d.items() | list", "d.keys() | list", "l | map('string')", "l | map('string') | list", "namespace(a=1)", "missing", "1e400", "[missing]", "'😀'", "l | reverse", "messages"),
    *each("{{ d | tojson(@) }}", "indent=2", "indent=0", "indent=none", "indent='\\t'", "indent=4, ensure_ascii=true", "separators=(',', ':')", "separators=[',', ':']", "indent=2, separators=(',', ': ')", "sort_keys=true", "true", "false, 2", "ensure_ascii=false", "2", "bogus=1", "indent=true"),
    "{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=2) }}",
    "{{ {'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=true, indent=1) }}",
    "{{ {'b': 1, 1: 2} | tojson(sort_keys=true) }}",
    "{{ 'é' | tojson(ensure_ascii=true) }}{{ '😀' | tojson(ensure_ascii=true) }}",
    "{{ x | tojson }}{{ n | tojson }}{{ s | tojson }}",
    "{% filter tojson %}a{% endfilter %}",
)
group(
    "filters",
    *each("{{ @ }}", "'abc' | length", "5 | length", "1.5 | length", "true | length", "d | length", "(1, 2) | length", "range(4) | length", "(l | map('string')) | length", "'abc' | list", "d | list", "5 | list", "l | sort", "l | sort(reverse=true)", "['b', 'A', 'c'] | sort", "['b', 'A', 'c'] | sort(case_sensitive=true)", "[1, 'a'] | sort", "[none, 1] | sort", "rows | sort(attribute='v') | length", "rows[:3] | sort(attribute='k') | map(attribute='v') | list", "rows[:3] | sort(attribute='k,v') | map(attribute='v') | list", "'cab' | sort", "d | sort", "l | join", "l | join(', ')", "l | join(d='-')", "['a', none, 1.5, true] | join('|')", "'abc' | join('-')", "5 | join", "[[1], {}] | join", "rows | join(',', attribute='k')", "rows | join(',', 'v')", "l | first", "l | last", "'abc' | first", "'abc' | last", "[] | first", "[] | last", "([] | first) is defined", "d | first", "d | last", "5 | first", "range(3) | last", "l | sum", "['a'] | sum", "['a'] | sum(start='')", "rows[:3] | sum(attribute='v')", "[] | sum", "l | min", "l | max", "[] | min", "['b', 'A'] | min", "['b', 'A'] | max(case_sensitive=true)", "rows[:3] | max(attribute='v')", "l | reverse", "l | reverse | list", "'abc' | reverse", "5 | reverse", "d | reverse | list", "[1, 1.0, '1', 'a', 'A'] | unique | list", "['a', 'A'] | unique(case_sensitive=true) | list", "rows | unique(attribute='k') | list | length", "l | unique", "l | map('string')", "l | map('string') | list", "l | map('nope') | list", "l | map() | list", "['a', 'b'] | map('upper') | join", "rows | map(attribute='v') | list", "rows | map(attribute='v', default=0) | list", "rows | map(attribute='k.x') | list", "rows | map('tojson') | list", "[[1, 2], [3]] | map('first') | list", "[[1, 2], [3]] | map(attribute=0) | list", "[[1, 2], [3]] | map(attribute='1') | list", "['a b', 'c'] | map('replace', ' ', '_') | list", "['ab'] | map('default', 'x') | list", "l | select | list", "l | select('odd') | list", "l | select('gt', 1) | list", "l | select('>', 1) | list", "[0, 1, '', none] | select | list", "[0, 1, '', none] | reject | list", "l | reject('odd') | list", "l | select('in', [1, 2]) | list", "rows | selectattr('v') | list | length", "rows | selectattr('k', 'equalto', 'x') | list | length", "rows | selectattr('k', '==', 'x') | map(attribute='v') | list", "rows | selectattr('k', 'none') | list", "rows | rejectattr('v', 'defined') | list", "rows | rejectattr('k', 'eq', 'x') | list", "rows | selectattr('v', 'defined') | list | length", "rows | selectattr('k', 'nope') | list", "rows | selectattr('v', 'gt', 1) | list", "messages | selectattr('role', 'equalto', 'user') | list | last", "messages | rejectattr('role', 'in', ['user', 'system']) | map(attribute='role') | list", "rows | groupby('k')", "(rows[:3] | groupby('k')) | list", "(rows[:3] | groupby('k')) | map(attribute='grouper') | list", "rows | groupby('k', default='z') | map('first') | list", "d | dictsort", "{'b': 1, 'A': 2} | dictsort", "{'b': 1, 'A': 2} | dictsort(true)", "{'b': 1, 'A': 2} | dictsort(by='value')", "{'b': 1, 'A': 2} | dictsort(reverse=true)", "{'b': 1, 1: 2} | dictsort", "d | items", "d | items | list", "[] | items | list", "'ab' | items | list", "l | batch(2) | list", "l | batch(2, 0) | list", "l | slice(2) | list", "range(7) | slice(3) | list", "l | slice(2, 'f') | list")
)
group(
    "text_filters",
    *each("{{ @ }}", "s | upper", "s | lower", "s | title", "'foo bar-baz_qux d\\'oh (x)' | title", "'HELLO wORLD' | capitalize", "5 | upper", "[1] | upper", "'ß' | upper", "'ǆ' | title", "'İ' | lower", "'  a \\n' | trim", "'xxaxx' | trim('x')", "'xyaxy' | trim(chars='xy')", "5 | trim", "'\\u00a0a\\u200b\\u3000' | trim | length", "'\\x1ca\\x1f' | trim | length", "'a.b.a' | replace('a', 'x')", "'a.b.a' | replace('a', 'x', 1)", "'abc' | replace('', '-')", "5 | replace('5', 'x')", "'a1' | replace(1, 2)", "'abc' | replace('a')", "'a' | default('x')", "'' | default('x')", "'' | default('x', true)", "false | default('x')", "0 | d(1, true)", "missing | default", "missing.x | default('y')", "none | default('y')", "'a\\nb\\n\\nc' | indent", "'a\\nb\\n\\nc' | indent(2)", "'a\\nb\\n\\nc' | indent(2, true)", "'a\\nb\\n\\nc' | indent(2, first=true, blank=true)", "'a\\nb\\n' | indent('> ')", "'a\\nb\\n' | indent(width=3, first=true)", "'a\\r\\nb' | indent(2)", "'' | indent(2, true)", "'a' | indent(indentfirst=true)", "5 | indent", "'a b  c' | wordcount", "'abc' | center(9) ~ '|'", "'abcdefgh' | truncate(5)", "'abcdefghijk' | truncate(5)", "'abc def ghi jkl' | truncate(9, true)", "'abc def ghi jkl' | truncate(9, false, '!', 0)", "'%s=%d' | format('a', 1)", "'%(a)s' | format(a=1)", "'%s' | format", "'<b>&\"\\'' | e", "'<b>' | escape ~ '<i>'", "'<b>' | e | e", "'<b>' | safe", "'<b>' | forceescape", "'a b&c' | urlencode", "{'a': 'b c'} | urlencode", "12345 | filesizeformat", "[1, 'a'] | pprint", "5 | string", "[1, 'a'] | string", "none | string", "1.0 | string", "true | string", "-5 | abs", "'a' | abs", "2.5 | round", "3.5 | round", "2.567 | round(2)", "2.5 | round(0, 'ceil')", "2.5 | round(method='floor')", "5 | round", "-2.5 | round", "2.5 | round | int", "1234.5 | round(-2)", "'a' | round", "'x' | nope", "'x' | attr('upper')", "d | attr('b')", "d | attr('items')", "s | length", "'a' | upper | lower", "'x' | tojson | tojson"),
    "{% filter upper %}a{{ 'b' }}{% endfilter %}",
    "{% filter replace('a', 'b') | upper %}a{% endfilter %}",
    "{% set t | upper %}abc{% endset %}{{ t }}",
    "{{ ('<' | e) ~ '<' }}",
    "{{ ('<' | e) + '<' }}",
    "{{ ['<' | e, '<'] | join }}",
    "{{ '<' | safe ~ '<' }}",
    "{{ ('<' | safe) + '<' }}",
    "{{ ('a' | safe).upper() }}{{ ('a' | e)[0] }}",
)
group(
    "methods",
    *each("{{ @ }}", "'abc'.upper()", "'ABC'.lower()", "'abc def'.title()", "\"they're x2y\".title()", "'abc'.capitalize()", "'aBc'.swapcase()", "'ß'.casefold()", "'  a '.strip()", "'xax'.strip('x')", "'\\n a'.lstrip()", "'a\\n '.rstrip() ~ '|'", "'aXa'.lstrip('a')", "'xa\\n\\n'.rstrip('\\n')", "'a'.strip(none)", "'a'.strip(1)", "'a,b,c'.split(',')", "'a,b,c'.split(',', 1)", "'a,b,c'.rsplit(',', 1)", "'a,b,c'.split(',', maxsplit=1)", "' a  b '.split()", "' a  b '.split(none, 1)", "' a  b  c '.rsplit(none, 1)", "'a  b'.split(' ')", "'a'.split('')", "''.split()", "''.split(',')", "'a,b'.split(sep=',')", "'a-b-c'.partition('-')", "'a-b-c'.rpartition('-')", "'abc'.partition('-')", "'abc'.startswith('a')", "'abc'.startswith(('x', 'a'))", "'abc'.startswith(['a'])", "'abc'.startswith('b', 1)", "'abc'.endswith('c')", "'abc'.endswith(('x', 'c'))", "'abc'.endswith('b', 0, 2)", "'abc'.find('c')", "'abc'.find('z')", "'abca'.find('a', 1)", "'abca'.rfind('a')", "'abc'.index('b')", "'abc'.index('z')", "'aaa'.count('a')", "'aaa'.count('aa')", "'a.b'.replace('.', '-')", "'aaa'.replace('a', 'b', 2)", "'aaa'.replace('a', 'b', count=2)", "'aaa'.replace('a')", "'aaa'.replace('a', none)", "'-'.join(['a', 'b'])", "'-'.join('ab')", "'-'.join([1])", "'-'.join(d)", "','.join(l | map('string'))", "'ab'.isalpha()", "'12'.isdigit()", "'²'.isdigit()", "'²'.isdecimal()", "'½'.isnumeric()", "'a1'.isalnum()", "''.isalpha()", "'ab'.islower()", "'AB'.isupper()", "'A1'.isupper()", "' '.isspace()", "''.isspace()", "'Ab Cd'.istitle()", "'a_b'.isidentifier()", "'é'.isascii()", "'a'.isprintable()", "'a\\nb\\r\\nc'.splitlines()", "'a\\nb\\n'.splitlines(true)", "'a\\nb'.splitlines(keepends=true)", "'5'.zfill(3)", "'-5'.zfill(4)", "'a'.ljust(3) ~ '|'", "'a'.rjust(3, '.')", "'a'.center(4, '*')", "'ab'.center(5, '*')", "'a\\tb'.expandtabs(4)", "'{} {}'.format('a', 1)", "'{0}{1}{0}'.format('a', 'b')", "'{x}'.format(x=1)", "'{:>5}'.format('a')", "'{{}}'.format()", "'{}'.format(none)", "'{:.2f}'.format(1.234)", "'{:d}'.format(5)", "'{a[0]}'.format(a=[1])", "'{!r}'.format('a')", "'{}'.format()", "'{a}'.format_map({'a': 1})", "'abc'.removeprefix('a')", "'abc'.removesuffix('c')", "'abc'.removeprefix('z')", "'a'.nope()", "'abc'.upper(1)", "d.items() | list", "d.keys() | list", "d.values() | list", "d.get('b')", "d.get('zz')", "d.get('zz', 5)", "d.get()", "d.pop('a')", "d.setdefault('q', 1)", "d.fromkeys(['a'])", "dict.fromkeys(['a', 'b'], 1)", "d.has_key('a')", "d.nope()", "d.items().x", "[1].append(2)", "l.sort()", "l.reverse()", "(1, 2).count(1)", "(1, 2).index(2)", "n.bit_length()", "5.0.is_integer()", "x.is_integer()", "1.real", "(255).bit_length()", "none.x()", "true.real", "range(3).count(1)", "range(3).start"),
)
group(
    "tests",
    *[
        "{{ %s is %s }}" % (value, test)
        for test in ["string", "mapping", "iterable", "sequence", "number", "integer", "float", "boolean", "callable", "none", "defined", "true", "false"]
        for value in ["none", "missing", "1", "1.5", "true", "'a'", "[]", "{}", "(1,)", "range(2)", "d.items()", "l | map('upper')", "namespace()", "raise_exception", "('a' | safe)"]
    ],
    *each("{{ @ }}", "1 is odd", "2 is even", "'a' is even", "1.5 is odd", "none is odd", "6 is divisibleby 3", "6 is divisibleby(4)", "'a' is divisibleby 2", "6 is divisibleby 0", "1 is eq 1", "1 is equalto(1)", "1 is sameas 1", "none is sameas none", "true is sameas true", "1 is sameas true", "[] is sameas []", "1 is lt 2", "1 is ge 2", "1 is lt 'a'", "'a' is lower", "'A' is upper", "1 is lower", "'1' is upper", "1 is in [1]", "1 is in 5", "'a' is in 'abc'", "1 is not in [1]", "1 is not none", "x is not defined", "x is nope", "missing is nope", "'upper' is filter", "'nope' is filter", "'odd' is test", "'x' is escaped", "('x' | safe) is escaped", "none is in [none]", "1 is ne 2", "not 1 is none", "1 is number is defined", "l is iterable and l is not string and l is not mapping", "messages is sequence", "messages[0].content is string", "messages[0] is mapping", "messages[0]['content'] is not string"),
)
group(
    "loops",
    "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}",
    "{% for m in l %}{{ loop.previtem }}<{{ m }}>{{ loop.nextitem }};{% endfor %}",
    "{% for m in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }};{% endfor %}",
    "{% for m in messages %}{% if loop.previtem is defined and loop.previtem.role == m.role %}same{% endif %}{% endfor %}-",
    "{% for m in l %}{{ loop.changed(m % 2) }}{% endfor %}",
    "{% for m in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for m in l %}{{ loop }}{% endfor %}",
    "{% for m in l %}{{ loop.nope }}{% endfor %}",
    "{% for m in l %}{{ loop['index'] }}{% endfor %}",
    "{% for k in d %}{{ k }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d | items %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in none.items() %}x{% endfor %}",
    "{% for k in d.keys() %}{{ k }}{% endfor %}{% for k in d.values() %}{{ k }}{% endfor %}",
    "{% for c in 'héy' %}{{ c }}.{% endfor %}",
    "{% for i in range(3) %}{{ i }}{% if not loop.last %},{% endif %}{% endfor %}",
    "{% for i in range(5) if i % 2 %}{{ i }}{{ loop.index }}{{ loop.length }}{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}",
    "{% for i in range(3) if i > 5 %}x{% else %}none{% endfor %}",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in range(2) %}{% break %}{% else %}e{% endfor %}",
    "{% for i in [1,2] %}{% for j in [1,2] %}{{ loop.index }}{{ i }}{{ j }} {% endfor %}{{ loop.index }};{% endfor %}",
    "{% for i in l %}{% set outer = loop %}{% for j in 'ab' %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}",
    "{% for i in l | sort %}{{ i }}{% endfor %}",
    "{% for i in l | reverse %}{{ loop.length }}{{ i }}{% endfor %}",
    "{% for i in l | map('string') %}{{ loop.last }}{{ loop.length }}{{ i }}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for (a, b) in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}",
    "{% for a, b, c in [(1, 2)] %}x{% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}x{% endfor %}",
    "{% for x in [{'c': [{'c': []}]}] recursive %}<{{ loop.depth }}{{ loop(x.c) }}>{% endfor %}",
    "{% for i in l %}{% set y = i %}{% endfor %}{{ y is defined }}",
    "{% set y = 0 %}{% for i in l %}{% set y = y + i %}{{ y }}{% endfor %}{{ y }}",
    "{% set y = 0 %}{% if true %}{% set y = 1 %}{% endif %}{{ y }}",
    "{% set ns = namespace(y=0) %}{% for i in l %}{% set ns.y = ns.y + i %}{% endfor %}{{ ns.y }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns['a'] }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}",
    "{% set ns = namespace(_a=1) %}",
    "{% set ns = namespace(a=1) %}{{ ns.items() }}",
    "{% set q = {} %}{% set q.a = 1 %}",
    "{% set missing.a = 1 %}",
    "{% for i in l %}{{ i }}{% endfor %}{{ i is defined }}",
    "{% set i = 9 %}{% for i in l %}{% endfor %}{{ i }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a, b = (1, 2) %}{{ a }}{{ b }}",
    "{% set (a, b) = [1, 2] %}{{ a }}{{ b }}",
    "{% set a, b = 'xy' %}{{ a }}{{ b }}",
    "{% set a, b = [1] %}",
    "{% set a, b = none %}",
    "{% set a = 1, 2 %}{{ a }}",
    "{% set a = b = 1 %}",
    "{% set loop = 1 %}{{ loop }}",
    "{% set true = 1 %}",
    "{% set a %}x{{ 1 }}{% endset %}{{ a }}{{ a | length }}{{ a is string }}",
    "{% set a %}<{% endset %}{{ a ~ '<' }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "{% with %}{% set a = 1 %}{{ a }}{% endwith %}{{ a is defined }}",
    "{% with a = 1 %}{% with b = a %}{{ b }}{% endwith %}{% endwith %}",
    "{% with a = 1, b = a %}{{ b }}{% endwith %}",
    "{% if 1 %}a{% elif 2 %}b{% else %}c{% endif %}",
    "{% if '' %}a{% elif [] %}b{% elif {} %}c{% elif 0.0 %}d{% else %}e{% endif %}",
    "{% if range(0) %}a{% else %}b{% endif %}",
    "{% if namespace() %}a{% endif %}",
    "{% if l | map('string') %}a{% endif %}",
    "{% if [] | map('string') %}a{% else %}b{% endif %}",
    "{% if missing.x %}a{% endif %}",
    "{% if not tools %}a{% endif %}",
    "{% for m in messages[::-1] %}{{ m.role }} {% endfor %}",
    "{% for m in messages | reverse %}{{ m.role }} {% endfor %}",
    "{% for m in messages[1:] if m.role == 'user' %}{{ m.role }}{{ loop.index }} {% endfor %}",
    "{% for m in (messages if messages else []) %}{{ loop.index }}{% endfor %}",
    "{% for i in range(10) %}{% if loop.index > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% do l.append(1) %}",
    "{% do 1 %}",
    "{% debug %}",
    "{% trans %}x{% endtrans %}",
    "{% autoescape true %}{{ '<' }}{% endautoescape %}{{ '<' }}",
    "{% autoescape false %}{{ '<' }}{% endautoescape %}",
    "{% block a %}x{% endblock %}",
    "{% block a %}x{% endblock %}{{ self.a() }}",
    "{% include 'x' %}",
    "{% include 'x' ignore missing %}y",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% nope %}",
    "{% if true %}",
    "{% endif %}",
    "{{ 1",
    "{{ }}",
    "{{ 1 2 }}",
    "{% if %}a{% endif %}",
    "{% for i in %}a{% endfor %}",
    "{{ 'a }}",
    "{{ a. }}",
    "{{ a | }}",
    "{{ ( }}",
    "{{ [1 }}",
    "{{ {1} }}",
    "{{ {'a'} }}",
    "{# a",
    "{% raw %}a",
    "{{ a b }}",
    "{{ 1 if }}",
    "{% set %}",
    "{% set a %}",
    "{% for i in l %}{% endif %}",
    "{% else %}",
    "{% if true %}a{% else %}b{% else %}c{% endif %}",
    "{% if true %}a{% endif x %}",
    "{% for loop in l %}{{ loop }}{% endfor %}",
    "{{ $ }}",
    "{{ a ? b }}",
    "{{ 1 & 2 }}",
    "{{ 1 && 2 }}",
    "{{ !a }}",
    "{{ a = 1 }}",
    "{{ lambda: 1 }}",
    "{{ a[ }}",
    "{{ é }}",
    "{% set é = 1 %}{{ é }}",
    "{% break %}",
)
group(
    "macros",
    "{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, 3) }}{{ f(a=1, b=4) }}{{ f(b=5, a=6) }}",
    "{% macro f(a) %}[{{ a }}]{% endmacro %}{{ f() }}",
    "{% macro f(a) %}{{ a is defined }}{% endmacro %}{{ f() }}",
    "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}",
    "{% macro f(a) %}{% endmacro %}{{ f(b=1) }}",
    "{% macro f(a) %}{% endmacro %}{{ f(1, a=1) }}",
    "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, a=3) }}",
    "{% macro f(a, b=a) %}{{ b }}{% endmacro %}{{ f(1) }}",
    "{% macro f(a=x) %}{{ a }}{% endmacro %}{{ f() }}",
    "{% macro f() %} x {% endmacro %}{{ f() | trim }}|{{ f() | length }}|{{ f() is string }}",
    "{% macro f() %}{{ n }}{% endmacro %}{{ f() }}",
    "{% set z = 1 %}{% macro f() %}{{ z }}{% endmacro %}{% set z = 2 %}{{ f() }}",
    "{% macro f() %}{{ z }}{% endmacro %}{% set z = 2 %}{{ f() }}",
    "{% macro f() %}{% set z = 5 %}{{ z }}{% endmacro %}{% set z = 2 %}{{ f() }}{{ z }}",
    "{% set ns = namespace(z=1) %}{% macro f() %}{% set ns.z = 7 %}{% endmacro %}{{ f() }}{{ ns.z }}",
    "{% for i in l %}{{ f(i) }}{% endfor %}{% macro f(a) %}{{ a }}{% endmacro %}",
    "{% for i in l %}{% macro f() %}{{ i }}{% endmacro %}{{ f() }}{% endfor %}",
    "{% macro f() %}{{ loop is defined }}{% endmacro %}{% for i in [1] %}{{ f() }}{% endfor %}",
    "{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}x{% endcall %}",
    "{% macro f() %}{{ caller(1) }}{% endmacro %}{% call(a) f() %}x{{ a }}{% endcall %}",
    "{% macro f() %}x{% endmacro %}{% call f() %}y{% endcall %}",
    "{% macro f() %}<{% endmacro %}{{ f() ~ '<' }}{{ f() + '<' }}",
    "{% macro f() %}{% endmacro %}{{ f }}",
    "{% macro f(a) %}{% endmacro %}{{ f.name }}{{ f.arguments }}",
    "{% macro f() %}{% if false %}x{% endif %}{% endmacro %}[{{ f() }}]{% if f() %}a{% else %}b{% endif %}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(*[1]) }}{{ f(**{'a': 2}) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ l | map('string') | map('upper') | join }}",
    "{% macro f(x) %}{%- if x is mapping %}m{% else %}{{ x }}{% endif -%}{% endmacro %}{{ f({}) }}{{ f(1) }}",
    "{% macro f(a, b) %}{{ a ~ b }}{% endmacro %}{{ f('x') }}",
    "{% macro f(a, a) %}{% endmacro %}",
    "{% macro f(a=1, b) %}{% endmacro %}",
    "{% set f = 1 %}{{ f() }}",
    "{{ 'a'() }}",
    "{{ n() }}",
    "{{ none() }}",
    "{% if true %}{% macro f() %}x{% endmacro %}{% endif %}{{ f() }}",
    "{% macro f() %}{% for i in l %}{% set ns = i %}{{ ns }}{% endfor %}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ messages | length }}{{ bos_token }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}x{% endmacro %}{{ f() }}",
    "{% macro _p(a) %}{{ a }}{% endmacro %}{{ _p(1) }}",
)
group(
    "calls",
    *each("{{ @ }}", "range()", "range('a')", "range(1.5)", "range(0, 5, 0)", "range(5, 0, -2) | list", "range(-1) | list", "range(100001) | length", "range(3) | list", "range(true) | list", "range(none)", "strftime_now('%Y-%m-%d')", "strftime_now('%d %b %Y')", "strftime_now('%A %B %j %U %W %y')", "strftime_now('%H:%M:%S.%f %p %I')", "strftime_now('%-d %-m %e')", "strftime_now('%x %X %c')", "strftime_now('%%')", "strftime_now('%z|%Z')", "strftime_now('%D %F %T %R')", "strftime_now('%G-%V-%u %w %a')", "strftime_now('%s') | length > 0", "strftime_now('')", "strftime_now('plain')", "strftime_now('%Q')", "strftime_now('%C %h %n%t %k %l %P %r')", "strftime_now('%é')", "strftime_now('%d. %B')", "strftime_now()", "strftime_now(5)", "strftime_now(none)", "strftime_now(format='%Y')", "dict(a=1).a", "namespace(a=1).a", "dict(**{'a': 1})", "dict(*[[('a', 1)]])", "dict(1)", "namespace(1)", "l | map('string', 1) | list", "''.join([])", "[].append", "range(*[1, 3]) | list"),
    "{% set now = strftime_now %}{{ now('%Y') }}",
    "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}",
    "{% set date_string = date_string if date_string is defined else strftime_now('%d %b %Y') %}{{ date_string }}",
)
TOOL_USE = """{{ bos_token }}<|system|>
You may call these functions:
{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}
<|end|>
{% for message in messages %}
<|{{ message['role'] }}|>
{{ message['content'] }}<|end|>
{% endfor %}
{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATING = """{%- set ns = namespace(expect='user') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' and loop.first -%}{%- continue -%}{%- endif -%}
    {%- if message.role != ns.expect -%}{{ raise_exception('Roles must alternate, but found ' ~ message.role) }}{%- endif -%}
    {%- set ns.expect = 'assistant' if ns.expect == 'user' else 'user' -%}
    {{- '[INST] ' + message.content.strip() + ' [/INST]' if message.role == 'user' else message.content.split('</think>')[-1].lstrip('\\n') + eos_token -}}
{%- endfor -%}"""
MACROS = """{%- macro part(content) -%}
    {%- if content is string -%}{{ content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}{{ item.text if 'text' in item else raise_exception('Unknown part') }}{%- endfor -%}
    {%- else -%}{{ raise_exception('Unexpected content') }}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {{- '<' ~ message.role ~ '>' ~ part(message.content) | trim ~ '</' ~ message.role ~ '>\n' -}}
{%- endfor -%}"""
group(
    "whole_templates",
    TOOL_USE,
    TOOL_USE.replace("in tools", "in (tools or [])"),
    TOOL_USE.replace("in tools", "in tools if tools is not none"),
    TOOL_USE.replace("\n", "\r\n"),
    TOOL_USE.replace("in tools", "in (tools or [])").replace("\n", "\r\n"),
    TOOL_USE.replace("in tools", "in (tools or [])").replace("\n", "\r"),
    TOOL_USE.replace("for tool in tools", "for name, tool in tools.items()"),
    TOOL_USE.replace("{% for tool in tools %}", "{{ tools | map('tojson') | join('\n') }}{% for tool in [] %}"),
    TOOL_USE.replace("{% for tool in tools %}", "{{ tools | length }}{% for tool in [] %}"),
    TOOL_USE.replace("{% for tool in tools %}", "{{ 'Tools: ' + tools }}{% for tool in [] %}"),
    CHATML,
    CHATML.replace("\n", "\r\n"),
    CHATML.replace("\n", "\\r\\n"),
    ALTERNATING,
    ALTERNATING.replace("\n", "\r\n"),
    ALTERNATING.replace("'user' -%}\n    {{-", "'system' -%}\n    {{-"),
    MACROS,
    MACROS.replace("\n", "\r"),
    MACROS.replace("message.content) |", "none) |"),
    MACROS.replace("message.content) |", "[{'text': message.content}]) |"),
    MACROS.replace("message.content) |", "[{'image': 1}]) |"),
)


def render(source):
    try:
        template = chat_template_utils._compile_jinja_template(source)
        text = template.render(**json.loads(json.dumps(VARIABLES)))
    except Exception as error:  # any exception means that transformers returns no text
        return None, type(error).__name__
    # Addresses of Python objects differ from run to run, so such a text cannot be compared.
    return (None, "address") if " at 0x" in text else (text, None)


cases = {}
for name, sources in SNIPPETS.items():
    cases[name] = []
    for source in dict.fromkeys(sources):
        text, error = render(source)
        cases[name].append({"source": source, "text": text} if error is None else {"source": source, "error": error})

count = sum(map(len, cases.values()))
refused = sum("error" in case for group in cases.values() for case in group)
json.dump(
    {
        "versions": {
            "python": sys.version.split()[0],
            "transformers": transformers.__version__,
            "jinja2": jinja2.__version__,
        },
        "variables": VARIABLES,
        "cases": cases,
    },
    (HERE / "expected.json").open("w"),
    ensure_ascii=False,
    indent=1,
)
print(f"{count} snippets, {refused} of them refused")
