"""Small templates: what chat templates may write, one thing each, and a generator of more."""

VARIABLES = (
    '{"s": "Hello World", "pad": "  \\t x y \\n", "u": "naïve 🙂 ß", "empty": "", "lines": "a\\n  b\\n\\nc", "n": 7, "z": 0, "neg": -7, "f": 2.5, "one": 1.0, '
    '"big": 12345678901234567890, "tiny": 1e-7, "huge": 1e22, "t": true, "no": false, "nul": null, "l": [3, 1, 2], "ls": ["b", "A", "c"], "el": [], '
    '"mix": [1, "a", null, true, 1.0, [2]], "d": {"b": 1, "10": "x", "2": "y", "a": null}, "ed": {}, "nest": {"x": {"y": [{"z": 5}]}}, '
    '"rows": [{"k": "b", "v": 2, "g": "X"}, {"k": "a", "v": 1, "g": "y"}, {"k": "c", "v": 3, "g": "x"}], "items": "own"}'
)

SNIPPETS = [
    # loops
    "{% for x in l %}a{{ x }}{% if x == 1 %}{% continue %}{% endif %}b{% endfor %}",
    "{% for x in l %}a{{ x }}{% if x == 1 %}!{% break %}{% endif %}b{% endfor %}",
    "{% for x in l %}[{% for y in ls %}{{ y }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}{{ loop.index }}]{% endfor %}",
    "{% for x in el %}a{% else %}none{% endfor %}",
    "{% for x in l %}{% break %}{% else %}none{% endfor %}",
    "{% for x in l %}{% continue %}{% else %}none{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}/{{ loop.length }}{{ x }}{% else %}none{% endfor %}",
    "{% for x in l %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }},{% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}{{ loop.cycle('o', 'e') }}{{ loop.changed(x > 1) }},{% endfor %}",
    "{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is undefined }}{% endfor %}",
    "{% for k in d %}{{ k }},{% endfor %}{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in d | items %}{{ k }}{{ v }}{% endfor %}",
    "{% for c in u %}[{{ c }}]{% endfor %}",
    "{% for a, b in [(1, 2), [3, 4]] %}{{ a + b }},{% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}",
    "{% for x in nul %}{{ x }}{% endfor %}",
    "{% for x in nothing %}{{ x }}{% endfor %}ok",
    "{% for x in n %}{{ x }}{% endfor %}",
    "{% for x in [[1, [2, [3]]], 4] recursive %}{% if x is iterable %}<{{ loop(x) }}{{ loop.depth }}>{% else %}{{ x }}{% endif %}{% endfor %}",
    "{% for x in l %}{% set y = x %}{% endfor %}{{ y is defined }}",
    "{% set y = 0 %}{% for x in l %}{{ y }}{% set y = y + x %}{{ y }},{% endfor %}{{ y }}",
    "{% set ns = namespace(y=0) %}{% for x in l %}{% set ns.y = ns.y + x %}{% endfor %}{{ ns.y }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b }}|{{ ns.b is defined }}",
    "{% set ns = namespace({'q': 1}, w=2) %}{{ ns.q + ns.w }}{{ ns['q'] }}",
    "{% set d.q = 1 %}{{ d.q }}",
    "{% if true %}{% set q = 1 %}{% endif %}{{ q }}",
    "{% if false %}{% set q = 1 %}{% endif %}{{ q }}|",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a %}x {{ n }} {% endset %}[{{ a }}]{{ a | length }}",
    "{% set a | upper | trim %} x {{ s }} {% endset %}[{{ a }}]",
    "{% filter upper %}a{{ s }}b{% endfilter %}",
    "{% filter replace('l', 'L') | trim %} a{{ s }}b {% endfilter %}.",
    "{% with a = 1, b = n %}{{ a + b }}{% endwith %}{{ a is defined }}",
    "{% generation %}{% set q = 1 %}a{{ q }}{% endgeneration %}{{ q is defined }}",
    "{% generation -%}  x  {%- endgeneration %}y",
    # macros
    "{% macro m(a, b=2, c=b) %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c=9) }}{{ m(a=5) }}{{ m() }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, x=2) }}",
    "{% macro m(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call m('b') %}in {{ n }}{% endcall %}",
    "{% macro m() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) m() %}{{ a + b }}{% endcall %}",
    "{% macro m(x) %}{% if x > 0 %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(3) }}",
    "{% macro m() %}{{ q }}{% endmacro %}{% set q = 1 %}{{ m() }}",
    "{% macro m(x) %}{% set n = x %}{{ n }}{% endmacro %}{{ m(1) }}{{ n }}",
    "{% macro m() %} a {% endmacro %}{{ m() | trim }}{{ m() ~ 'b' }}{{ m()|length }}{{ 'a' in m() }}",
    "{% macro m(x=[]) %}{{ x }}{% endmacro %}{{ m() }}{{ m(x=nul) }}",
    # white space
    "a\n{% if true %}\nb\n{% endif %}\nc\n",
    "a\n  {% if true %}  \n  b\n  {% endif %}\nc",
    "a\n  {%- if true -%}  \n  b\n  {%- endif %}\nc",
    "a\n  {%+ if true +%}\n  b\n  {% endif %}\nc",
    "a  {# c #}  b\n  {# d #}\ne{#- f -#}  g",
    "a {{- n -}} b {{ n }}\n{{ n }}\n\n",
    "x\n\n",
    "x\r\ny\r{{ 1 }}\r\n",
    "{% raw %}{{ x }} {% y %}{% endraw %}|{%- raw -%}  a  {%- endraw -%}  b",
    "  {% set x = 1 %}  {{ x }}",
    "\t{% if true %}a{% endif %}\n\t{% if true %}\n\tb{% endif %}\n",
    "\u3000{%- if true %}\u00a0{%- endif %}x\ufeff{%- if true %}{% endif %}",
    "{{ '{{' }}{{ \"%}\" }}{{ {'a': {'b': 1}} }}",
    # texts
    "{{ 'a\\nb\\t\\x41\\u00e9\\\\\\'\\q\\101' }}",
    "{{ 'a' 'b' \"c\" }}",
    "{{ pad.strip() }}|{{ pad.lstrip() }}|{{ pad.rstrip() }}|{{ '\\n a \\n'.strip('\\n') }}|{{ '\\n a'.lstrip('\\n') }}|{{ 'xxaxx'.rstrip('x') }}",
    "{{ 'abcba'.strip('ab') }}{{ 'a b'.strip(none) }}{{ '🙂a🙂'.strip('🙂') }}{{ '\\ufeff a \\x1c\\x85'.strip() }}",
    "{{ pad | trim }}|{{ '--a--' | trim('-') }}",
    "{{ s.split() }}{{ s.split('o') }}{{ s.split('o', 1) }}{{ s.rsplit('o', 1) }}{{ ' a  b '.split(' ') }}{{ ' a  b c '.split(none, 1) }}{{ ' a b  c '.rsplit(none, 1) }}",
    "{{ 'a,b'.split(sep=',') }}{{ 'a,b,c'.split(',', maxsplit=1) }}{{ ''.split() }}{{ ''.split(',') }}",
    "{{ 'a'.split('') }}",
    "{{ lines.splitlines() }}{{ lines.splitlines(true) }}{{ 'a\\r\\nb\\x0bc\\u2028'.splitlines() }}",
    "{{ s.replace('l', 'L') }}{{ s.replace('l', 'L', 1) }}{{ s.replace('', '-') }}{{ s | replace('o', '0', 1) }}{{ 'a$&b' | replace('a', '$&') }}",
    "{{ s.startswith('He') }}{{ s.startswith(('x', 'He')) }}{{ s.endswith('ld') }}{{ s.startswith('lo', 3) }}{{ s.startswith('') }}",
    "{{ s.startswith(['x']) }}",
    "{{ s.title() }}{{ 'it\\'s a-b' | title }}{{ 'it\\'s a-b'.title() }}{{ s | capitalize }}{{ u | upper }}{{ 'ÀB' | lower }}{{ 'aBc'.swapcase() }}",
    "{{ s.find('o') }}{{ s.find('q') }}{{ s.rfind('o') }}{{ s.index('W') }}{{ s.count('l') }}{{ u.find('ß') }}{{ s.count('') }}",
    "{{ s.index('q') }}",
    "{{ ','.join(ls) }}{{ ls | join(', ') }}{{ rows | join('-', attribute='k') }}{{ mix | join('|') }}{{ l | join }}{{ d | join(',') }}",
    "{{ ','.join(l) }}",
    "{{ s.partition(' ') }}{{ s.rpartition('o') }}{{ s.partition('q') }}",
    "{{ s.center(15) }}|{{ s.ljust(13, '.') }}|{{ s.rjust(13) }}|{{ '-7'.zfill(5) }}|{{ 'ab' | center(5) }}|{{ 'abc' | center(6) }}|{{ 'a'.center(4) }}",
    "{{ 'a'.isalpha() }}{{ '1'.isdigit() }}{{ ' '.isspace() }}{{ 'a1'.isalnum() }}{{ 'A'.isupper() }}{{ 'a'.islower() }}{{ ''.isalpha() }}{{ 'Ab Cd'.istitle() }}",
    "{{ s.removeprefix('He') }}{{ s.removesuffix('ld') }}{{ s.removeprefix('x') }}",
    "{{ s[0] }}{{ s[-1] }}{{ s[1:3] }}{{ s[::-1] }}{{ s[-3:] }}{{ s[:-3] }}{{ s[::2] }}{{ u[6] }}{{ u[6:] }}{{ u | length }}{{ s[99] }}{{ s[5:1] }}{{ s[10:0:-3] }}",
    "{{ 'ab' * 3 }}{{ 3 * 'ab' }}{{ 'a' * -1 }}{{ [1] * 2 }}{{ (1,) * 2 }}",
    "{{ 'a' + 1 }}",
    "{{ 'a' ~ 1 ~ none ~ true ~ 1.0 ~ nothing ~ [1, 'x'] }}",
    "{{ '%s is %d, %5.2f|%-5s|%05d|%x|%r|%%' % (s, n, f, 'ab', 42, 255, 'q') }}{{ '%s' % n }}{{ '%(a)s' % {'a': 1} }}{{ '%s-%s' | format('a', 1) }}",
    "{{ '%d' % 'a' }}",
    "{{ '%s' % (1, 2) }}",
    "{{ '{} {1}'.format(1, 2) }}",
    "{{ '{} {} {{}}'.format(s, n) }}{{ '{0}{a}{0!r}'.format('x', a=1) }}{{ '{:>5}|{:<5}|{:^5}|{:.2f}|{:05d}|{:,}'.format('a', 'b', 'c', f, n, 1234567) }}",
    "{{ 'a' in s }}{{ 'H' in s }}{{ 'H' not in s }}{{ 1 in l }}{{ '10' in d }}{{ 'z' in d }}{{ none in mix }}{{ 1.0 in l }}{{ 'q' in nothing }}",
    "{{ 1 in s }}",
    "{{ 'a' in n }}",
    "{{ lines | indent }}|{{ lines | indent(2, true) }}|{{ lines | indent(2, blank=true) }}|{{ lines | indent('> ', first=true) }}|{{ 'a\\n' | indent }}",
    "{{ s | truncate(8) }}{{ s | truncate(8, true) }}{{ s | truncate(5, false, '..', 0) }}{{ s | wordcount }}{{ '<a href=\"x\">&' | escape }}{{ '<' | safe }}{{ 'a b/c?' | urlencode }}",
    "{% set x = d | tojson | safe if d is mapping else s %}{{ x }}{{ x ~ '<' }}{{ x is string }}{{ x == s }}{{ ['<' | e, 'a' | safe] }}{{ '<' | e | e }}{{ '<' | e | forceescape }}{{ ['<' | e] | join(',') }}",
    "{{ s | string }}{{ n | string ~ 'x' }}{{ nul | string }}{{ s | upper | lower | title | length }}",
    "{{ 'a' < 'b' }}{{ 'a' < 'B' }}{{ '🙂' < '\uffff' }}{{ [1, 2] < [1, 3] }}{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 1 == 1.0 }}{{ true == 1 }}{{ '1' == 1 }}{{ none == false }}",
    "{{ 'a' < 1 }}",
    "{{ none < 1 }}",
    # numbers
    "{{ 1.0 }}{{ one }} {{ f }} {{ big }} {{ tiny }} {{ huge }} {{ 1e16 }} {{ 123456789012345.0 }} {{ 1e-5 }} {{ 0.0001 }} {{ 1e300 * 1e10 }} {{ -0.0 }}",
    "{{ big + 1 }} {{ big * big }} {{ big // 7 }} {{ big % 7 }} {{ -big }} {{ big - big }} {{ 2 ** 64 }} {{ 2 ** -1 }} {{ 9007199254740993 + 0 }}",
    "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % -3 }} {{ -7 % 3 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 0.1 + 0.2 }}",
    "{{ 1 / 0 }}",
    "{{ 1 % 0 }}",
    "{{ n + none }}",
    "{{ none * 2 }}",
    "{{ true + true }} {{ -true }} {{ +f }} {{ 0x1F }} {{ 1_000 }} {{ 0b11 }} {{ 0o17 }} {{ 1e3 }} {{ 1.5e3 }}",
    "{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 1.25 | round(1) }} {{ 7 | round }} {{ 1234 | round(-2) }} {{ 2.1 | round(0, 'ceil') }} {{ 2.19 | round(1, 'floor') }} {{ -0.5 | round }}",
    "{{ '42' | int }} {{ '4.7' | int }} {{ 'x' | int }} {{ 'x' | int(-1) }} {{ none | int }} {{ 3.9 | int }} {{ '0x1A' | int(base=16) }} {{ ' 5 ' | int }} {{ '1_0' | int }} {{ true | int }} {{ '1e3' | int }}",
    "{{ '4.5' | float }} {{ '4' | float }} {{ 'x' | float }} {{ none | float(1.5) }} {{ 'inf' | float }} {{ 'nan' | float }} {{ ' 1e3 ' | float }} {{ big | float }}",
    "{{ -3 | abs }} {{ (-3) | abs }} {{ -f | abs }} {{ l | sum }} {{ l | max }} {{ l | min }} {{ rows | sum('v') }} {{ ls | max }} {{ rows | max(attribute='v') }} {{ el | max }} {{ [1.5, 1] | sum }}",
    "{{ range(3) }}{{ range(1, 7, 2) | list }}{{ range(3, 0, -1) | list }}{{ range(0) | list }}{{ range(5)[1] }}{{ range(5) | length }}{{ 3 in range(5) }}{{ range(5)[1:3] }}",
    "{{ range(200000) | length }}",
    "{{ range(1.0) }}",
    # containers
    "{{ l }}{{ mix }}{{ d }}{{ nest }}{{ (1,) }}{{ () }}{{ [1, (2, 3)] }}{{ {'a': 1, 2: none, 1.5: 'q'} }}{{ ['it\\'s', '\"', 'a\\nb', '\\x07', 'é', '\\u200b'] }}",
    "{{ l[0] }}{{ l[-1] }}{{ l[1:] }}{{ l[::-1] }}{{ l[9] }}|{{ l['x'] }}|{{ l[true] }}{{ l[-9:2] }}{{ (1, 2, 3)[1:] }}{{ l.0 }}{{ rows.0.k }}",
    "{{ d.b }}{{ d['10'] }}{{ d.a }}{{ d.zz }}|{{ d['zz'] }}|{{ d.get('b') }}{{ d.get('zz') }}{{ d.get('zz', 5) }}{{ d.get('a', 5) }}{{ nest.x.y[0].z }}{{ nest['x']['y'] }}",
    "{{ d.zz.q }}",
    "{{ d['zz']['q'] }}",
    "{{ nothing.q }}",
    "{{ nothing['q'] }}",
    "{{ nul.q }}|{{ nul['q'] }}|{{ n.q }}|{{ s.q }}|{{ s['q'] }}|{{ nul[0] }}|{{ n[0] }}",
    "{{ d.keys() }}{{ d.values() | list }}{{ d.items() | list }}{{ d | length }}{{ d | list }}{{ d.items() }}{{ d.keys() | length }}{{ 'b' in d.keys() }}",
    "{{ {'items': 1}.items }}" " {{ {'keys': 5}['keys'] }}{{ {'get': 5}['get'] }}{{ {'a': 1}.copy() }}",
    "{{ d | dictsort }}{{ {'B': 1, 'a': 3} | dictsort }}{{ {'B': 1, 'a': 3} | dictsort(true) }}{{ {'B': 1, 'a': 3} | dictsort(by='value', reverse=true) }}",
    "{{ l.append(4) }}",
    "{{ d.update({'q': 1}) }}",
    "{{ d.pop('b') }}",
    "{{ l.index(1) }}{{ l.count(3) }}{{ l.copy() }}{{ (1, 1).count(1) }}",
    "{{ l + [4] }}{{ (1,) + (2,) }}{{ l == [3, 1, 2] }}{{ d == {'b': 1, '10': 'x', '2': 'y', 'a': none} }}{{ [1] == (1,) }}{{ [1] == [1.0] }}{{ [] == [] }}",
    "{{ l + (4,) }}",
    "{{ dict(a=1, b=2) }}{{ dict([('x', 1)], y=2) }}{{ dict(d, q=1) }}{{ dict() }}{{ {1: 'a'}[1] }}{{ {1: 'a'}[1.0] }}{{ {true: 'a'} }}",
    "{{ l | sort }}{{ ls | sort }}{{ ls | sort(case_sensitive=true) }}{{ l | sort(reverse=true) }}{{ rows | sort(attribute='v') | map(attribute='k') | list }}{{ rows | sort(attribute='g,v') | map(attribute='v') | list }}",
    "{{ mix | sort }}",
    "{{ l | first }}{{ l | last }}{{ el | first }}|{{ el | last }}|{{ s | first }}{{ s | last }}{{ d | first }}{{ l | reverse | list }}{{ s | reverse }}{{ d | last }}",
    "{{ rows | map(attribute='k') | list }}{{ ls | map('upper') | list }}{{ rows | map(attribute='q', default='-') | list }}{{ ls | map('replace', 'A', 'B') | join }}{{ rows | map(attribute='q') | list }}",
    "{{ l | select('>', 1) | list }}{{ l | select('odd') | list }}{{ l | reject('odd') | list }}{{ mix | select | list }}{{ mix | select('string') | list }}{{ mix | reject('none') | list }}",
    "{{ rows | selectattr('v', 'equalto', 2) | map(attribute='k') | list }}{{ rows | selectattr('q') | list }}{{ rows | rejectattr('v', '>', 1) | list }}{{ rows | selectattr('q', 'defined') | list }}{{ rows | selectattr('k', 'in', ['a']) | list | length }}",
    "{{ rows | groupby('g') }}{% for g, items in rows | groupby('g') %}{{ g }}{{ items | length }}{% endfor %}{% for x in rows | groupby('g', case_sensitive=true) %}{{ x.grouper }}{{ x.list | length }}{% endfor %}",
    "{{ range(7) | batch(3) | list }}{{ range(7) | batch(3, 'x') | list }}{{ range(7) | slice(3) | list }}{{ range(7) | slice(3, '-') | list }}{{ [1, 1.0, 2, 'a', 'A'] | unique | list }}{{ ls | unique(true) | list }}",
    "{% set m = l | map('string') %}{{ m | join }}{{ m | join }}|{{ m is iterable }}{{ m is sequence }}",
    "{% if el | map('upper') %}true{% endif %}{% if rows | selectattr('q') %}true{% endif %}",
    "{{ l | map('upper') | length }}",
    "{{ (l | map('string'))[0] }}|",
    "{{ l | list }}{{ s | list }}{{ u | list }}{{ nothing | list }}{{ nothing | length }}{{ el | length }}",
    "{{ nul | length }}",
    "{{ n | length }}",
    "{{ nul | list }}",
    "{{ n | upper }}{{ nul | upper }}{{ nul | trim }}{{ nul | join }}",
    "{{ rows | map('attr', 'k') | list }}|{{ s | attr('upper') is callable }}|{{ d | attr('b') }}",
    # tojson
    "{{ d | tojson }}{{ mix | tojson }}{{ big | tojson }}{{ one | tojson }}{{ tiny | tojson }}{{ s | tojson }}{{ u | tojson }}{{ nul | tojson }}{{ t | tojson }}{{ (1, 2) | tojson }}",
    "{{ nest | tojson(indent=2) }}{{ d | tojson(indent=4) }}{{ el | tojson(indent=2) }}{{ ed | tojson(2) }}{{ [[], {}] | tojson(indent=1) }}{{ l | tojson(indent=0) }}{{ l | tojson(indent='\\t') }}",
    "{{ d | tojson(separators=(',', ':')) }}{{ d | tojson(sort_keys=true) }}{{ u | tojson(ensure_ascii=true) }}{{ d | tojson(true, 2, (',', ': '), true) }}{{ d | tojson(indent=none) }}",
    "{{ '<a>&\\'\"\\\\/\\x7f\\x01\\u2028' | tojson }}{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}{{ {'a': (1, {'b': (2,)})} | tojson }}{{ [1e999, -1e999] | tojson }}",
    "{{ nothing | tojson }}",
    "{{ range(3) | tojson }}",
    "{{ (l | map('string')) | tojson }}",
    # tests, logic, undefined
    "{{ nothing is defined }}{{ n is defined }}{{ d.q is defined }}{{ nul is defined }}{{ nul is none }}{{ n is number }}{{ t is number }}{{ f is float }}{{ n is integer }}{{ t is integer }}{{ t is boolean }}",
    "{{ s is string }}{{ l is sequence }}{{ d is mapping }}{{ d is sequence }}{{ s is iterable }}{{ n is iterable }}{{ l is mapping }}{{ s is sequence }}{{ nothing is iterable }}{{ t is true }}{{ no is false }}{{ n is true }}",
    "{{ n is odd }}{{ n is even }}{{ 9 is divisibleby 3 }}{{ n is eq 7 }}{{ n is gt(5) }}{{ 'a' is in s }}{{ 'H' is in(s) }}{{ s is lower }}{{ 'AB' is upper }}{{ n is not none }}{{ n is sameas n }}{{ range is callable }}",
    "{{ not nul }}{{ not s }}{{ nul or 'x' }}{{ s and n }}{{ z or none }}{{ not n == 7 }}{{ n == 7 and not no or no }}{{ s if t }}{{ s if no }}|{{ 'a' if no else 'b' if no else 'c' }}",
    "{{ nothing }}|{{ nothing or 'x' }}|{{ nothing ~ 'x' }}|{{ nothing == nothing2 }}|{{ nothing is none }}|{{ nothing | default('d') }}|{{ empty | default('d') }}|{{ empty | default('d', true) }}|{{ nul | default('d') }}|{{ nul | d('d', boolean=true) }}",
    "{{ nothing + 1 }}",
    "{{ nothing() }}",
    "{{ nothing | upper }}|{{ nothing | trim }}|{{ nothing | join(',') }}|{{ nothing | first }}|{{ nothing | int }}|{{ nothing | string }}",
    "{{ nothing < 1 }}",
    "{{ n() }}",
    "{{ s.nope() }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now('%A, %B %-d, %Y %H:%M:%S %p %j %y') }}",
    "{{ -n }}{{ - n }}{{ n - 1 }}{{ n -1 }}{{ (n) }}{{ [n, ] }}{{ {'a': 1, } }}{{ (n, ) }}{{ -1 | string }}{{ 1 + 2 | string | length }}{{ 'a' ~ 'b' | upper }}",
    "{{ loop is defined }}{{ true }}{{ True }}{{ none }}{{ None }}{{ false }}",
    "{{ items }}{{ s.items }}|{{ s.__class__ }}",
    "{{ x.y. }}", "{% if %}", "{% endif %}", "{{ 1 + }}", "{% for x l %}{% endfor %}", "{{ 'a }}", "{% unknown %}", "{{ a | nofilter }}", "{{ a is notest }}", "{% break %}", "{% macro m() %}", "{{ (1 }}", "{# a",
    "{{ *l }}", "{{ f(**d) }}", "{{ 1 is 2 }}", "{{ a b }}", "{% set 1 = 2 %}", "{% set true = 2 %}",
    "{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ m(*[1, 2]) }}{{ m(**{'a': 1, 'b': 2}) }}",
    "{{ 'a' if x is defined else 'b' }}{{ (x if x is defined else 'q') ~ 'r' }}{{ l[n - 6] }}{{ l[-1:][0] }}{{ s[n:] }}{{ {'a': [1, 2]}['a'][1] }}",
    "{% set x = [] %}{% for i in l %}{% set x = x + [i] %}{% endfor %}{{ x }}",
    "{%- set x -%} a {%- endset -%} {{ x }}{%- if x -%} b {%- elif t -%} c {%- else -%} d {%- endif -%} ",
    "{% for r in rows %}{% if r.v == 1 %}{% set q = r.k %}{% elif r.v == 2 %}two{% else %}{{ q }}|{% endif %}{% endfor %}",
    "{% set content = 'a</think>b' %}{{ content.split('</think>')[-1].lstrip('\\n') }}{{ content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] }}",
    "{{ [1, 2, 3, 4][1:-1] }}{{ [1, 2, 3][::-1][0] }}{{ 'abc'[::-1] }}{{ rows[::-1][0].k }}{{ rows[1:] | length }}{{ rows | length - 1 }}",
]

VALUES = [
    "s", "pad", "u", "empty", "lines", "n", "z", "neg", "f", "one", "big", "tiny", "huge", "t", "no", "nul", "l", "ls", "el", "mix", "d", "ed", "nest", "rows",
    "nothing", "'a'", "''", "'l'", "'o W'", "0", "1", "-2", "3", "1.5", "2.0", "none", "true", "[1, 'a']", "(1, 2)", "{'k': 1}", "d.b", "d.zz", "rows[0]", "range(3)",
]
FILTERS = [
    "abs", "capitalize", "count", "default('x')", "default('x', true)", "dictsort", "first", "float", "indent", "indent(2)", "int", "items | list", "join", "join(',')", "last",
    "length", "list", "lower", "map('string') | list", "map('length') | list", "max", "min", "reject('none') | list", "replace('a', 'b')", "replace('l', '', 1)", "reverse | list", "round",
    "round(1)", "select | list", "select('string') | list", "sort", "sort(reverse=true)", "string", "sum", "title", "tojson", "tojson(indent=2)", "trim", "truncate(5)", "unique | list", "upper",
    "wordcount", "batch(2) | list", "slice(2) | list", "center(9)", "map(attribute='k') | list", "selectattr('k') | list", "groupby('g')", "format(1)", "urlencode",
]
METHODS = [
    "strip()", "strip('Hd')", "lstrip(' ')", "rstrip('\\n')", "split()", "split('l')", "split('l', 1)", "rsplit(' ', 1)", "splitlines()", "replace('l', 'L')", "upper()", "lower()", "title()", "capitalize()",
    "startswith('H')", "endswith(('d', 'x'))", "find('o')", "count('l')", "join(ls)", "partition('o')", "zfill(4)", "get('b')", "get('q', 1)", "keys() | list", "values() | list", "items() | list", "index('o')",
    "isdigit()", "isupper()", "islower()", "isspace()", "istitle()", "isalpha()", "swapcase()", "casefold()", "k", "x.y", "format(1)", "removeprefix('He')", "expandtabs(4)", "ljust(9, '-')", "count(1)",
]
TESTS = ["defined", "none", "string", "number", "integer", "float", "boolean", "mapping", "sequence", "iterable", "true", "false", "odd", "even", "lower", "upper", "callable", "in l", "eq 1", "divisibleby 2", "undefined"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "and", "or", "in", "not in"]
INDICES = ["0", "-1", "1:", ":-1", "::-1", "1:3", "'b'", "'k'", "9", "::2", "-2:", "n", "nul", "true", "1.0"]


def expression(rng, depth: int) -> str:
    if depth == 0:
        return rng.choice(VALUES)
    inner = lambda: expression(rng, depth - 1)
    match rng.randrange(9):
        case 0 | 1:
            return f"({inner()} | {rng.choice(FILTERS)})"
        case 2 | 3:
            return f"({inner()}).{rng.choice(METHODS)}" if rng.random() < 0.9 else f"{rng.choice(VALUES[:20])}.{rng.choice(METHODS)}"
        case 4 | 5:
            return f"({inner()} {rng.choice(OPERATORS)} {inner()})".replace("* big", "* 3").replace("big *", "3 *").replace("* huge", "* 3")
        case 6:
            return f"({inner()} is {rng.choice(['', 'not '])}{rng.choice(TESTS)})"
        case 7:
            return f"({inner()})[{rng.choice(INDICES)}]"
        case _:
            return rng.choice([f"({inner()} if {inner()} else {inner()})", f"[{inner()}, {inner()}]", f"(not {inner()})", f"(-{inner()})", f"{{'q': {inner()}}}"])


def random_snippet(rng) -> str:
    value = expression(rng, rng.choice([1, 1, 2, 2, 3]))
    return rng.choice([f"{{{{ {value} }}}}", f"{{{{ [{value}] }}}}", f"{{% for x in {value} %}}{{{{ x }}}},{{% endfor %}}", f"{{% if {value} %}}a{{% else %}}b{{% endif %}}"])
