//! Templates as they are prepared, and those that are refused.

use super::*;

fn prepared(source: &str) -> String {
    prepare(source)
        .unwrap()
        .replace(CHECKED, "C")
        .replace(KEPT, "K")
        .replace(MODULO, "M")
}

#[test]
fn the_usual_stays_as_it_is() {
    for source in [
        "a {{ bos_token }} {# {{ x + y }} #}{% raw %}{{ 1 + 1 }}{% endraw %}",
        "{%- for m in messages[1:] if m.role == 'user' -%}{{ m['content'].strip('x') }}{%- endfor %}",
        "{% if not loop.first and m.x is not none or 'a' in d %}{% endif %}{% set x = y %}",
        "{% macro f(a, b=1) %}{% endmacro %}{% call(x, y) f(1) %}{% endcall %}",
        "{{ a if b is defined and b is in [1] else -c }}",
    ] {
        assert_eq!(prepared(source).replace("C([1])", "[1]"), source);
    }
}

#[test]
fn what_grows_is_checked() {
    for (source, expected) in [
        ("{{ a + b - c }}", "{{ C(a + b - c) }}"),
        ("{{ -a - b }}", "{{ -a - b }}"),
        (
            "{% set x = [a, {'b': (c, d)}] %}",
            "{% set x = C([a, C({'b': C((c, d))})]) %}",
        ),
        ("{% set n.x = y %}", "{% set n.x = K( y) %}"),
        ("{% set a = b, c %}", "{% set a = C(( b, c)) %}"),
        ("{{ x | list }}", "{{ C(x | list) }}"),
        ("{{ 2 * x[1 + 1] }}", "{{ C(2 * x[C(1 + 1)]) }}"),
        (
            "{{ a == b }}{{ a == 'b' }}{{ a not in b }}",
            "{{ C(a) == C(b) }}{{ a == 'b' }}{{ C(a) not in C(b) }}",
        ),
    ] {
        assert_eq!(prepared(source), expected);
    }
}

#[test]
fn remainders_are_pythons() {
    for (source, expected) in [
        ("{{ '%s' % x }}", "{{ M('%s', x) }}"),
        ("{{ a - b % c ~ d }}", "{{ a - M(b, c) ~ d }}"),
        (
            "{% if loop.index % 2 == 0 %}",
            "{% if M(loop.index, 2) == 0 %}",
        ),
        ("{{ 2 * a % b % c }}", "{{ C(M(M(2 * a, b), c)) }}"),
        ("{{ f(a % b, '%') }}", "{{ f(M(a, b), '%') }}"),
    ] {
        assert_eq!(prepared(source), expected);
    }
}

#[test]
fn generation_tags_are_conditions_that_hold() {
    assert_eq!(
        prepared("{%- generation -%}a{%- endgeneration +%}{{ '{% generation %}' }}"),
        "{%- if true -%}a{%- endif +%}{{ '{% generation %}' }}"
    );
}

#[test]
fn too_much_is_refused() {
    for source in [
        " ".repeat(SOURCE_CAP + 1),
        format!("{{{{ {}1 }}}}", "1+".repeat(MOST_TOKENS)),
        format!("{{{{ {}{} }}}}", "(".repeat(100), ")".repeat(100)),
        "{% if a %}".repeat(100),
        "{{ a }}".repeat(MOST_TAGS + 1),
        format!("{{{{ {} }}}}", "[".repeat(20_000)),
        "{% elif a %}".repeat(MOST_BRANCHES + 1),
    ] {
        assert!(prepare(&source).is_err(), "{}", &source[..20]);
    }
}
