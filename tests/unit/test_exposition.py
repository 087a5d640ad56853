from __future__ import annotations

from vela.supervisor.export.exposition import Family, encode, labels


def test_family_is_written_with_help_type_and_escaped_labels() -> None:
    family = Family("vela_x_total", "counter", "One\\two\nthree.")
    family.add(3, labels({"circuit": 'a"b\\c\nd', "id": 1}))
    family.add(True)
    family.add(0.25, labels({}))
    family.add(None)

    # The escapes of the text format, version 0.0.4.
    assert encode([family]) == (
        b"# HELP vela_x_total One\\\\two\\nthree.\n"
        b"# TYPE vela_x_total counter\n"
        b'vela_x_total{circuit="a\\"b\\\\c\\nd",id="1"} 3\n'
        b"vela_x_total 1\n"
        b"vela_x_total 0.25\n"
    )


def test_lone_surrogate_in_a_label_does_not_spoil_the_exposition() -> None:
    family = Family("vela_x", "gauge", "X.")
    family.add(1, labels({"bridge": "br\udcff"}))

    assert encode([family]).endswith(b'vela_x{bridge="br?"} 1\n')
