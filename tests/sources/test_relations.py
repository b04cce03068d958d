"""What a header is called as a relation, and what kind of thing values are."""

from __future__ import annotations

import pytest

from memlayers.sources.relations import is_plural, kind_of_most, kind_of_name, kind_of_value, relation_name, yes_no_form


@pytest.mark.parametrize(
    ("header", "name", "unit"),
    [
        ("unit_price", "unit price", ""),
        ("chiefExecutive", "chief executive", ""),
        ("Price (EUR)", "price", "EUR"),
        ("price_eur", "price", "eur"),
        ("Weight in kg", "weight", "kg"),
        ("Weight [kg]", "weight", "kg"),
        ("Check in", "check in", ""),
        ("PRICE", "price", ""),
        ("ISBN", "ISBN", ""),
        ("UNIT PRICE", "unit price", ""),
        ("skuCode", "sku code", ""),
        ("productID", "product ID", ""),
        ("has WiFi", "has WiFi", ""),
        ("hasWiFi", "has WiFi", ""),
        ("Chief Executive", "chief executive", ""),
        ("supports Bluetooth", "supports Bluetooth", ""),
        ("The capital:", "capital", ""),
        ("Manager (acting)", "manager (acting)", ""),
        ("Population (2023)", "population (2023)", ""),
        ("E-mail", "e-mail", ""),
        ("%", "%", ""),
        (" : ", ":", ""),
    ],
)
def test_a_header_as_a_relation(header: str, name: str, unit: str):
    assert relation_name(header) == (name, unit)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("yes", "yes_no"), ("FALSE", "yes_no"), ("2024-01-05", "date"), ("5.1.2024", "date"), ("14 March 1987", "date"),
        ("March 14, 1987", "date"), ("1987", "date"), ("2024-01-05 10:30:00", "date"), ("007", "number"),
        ("1,234.50", "number"), ("146.99 EUR", "number"), ("€ 12", "number"), ("12 %", "number"), ("80 km/h", "number"),
        ("1.2 million", "number"), ("120 m²", "number"), ("-4", "number"), ("Hall 3, Rotterdam", "text"),
        ("12 Main Street", "text"), ("Ann", "text"), ("A-12", "text"), ("4B", "text"),
        ("12kg", "number"), ("8 h", "number"), ("5%", "number"),
    ],
)  # fmt: skip
def test_the_kind_of_a_value(value: str, kind: str):
    assert kind_of_value(value) == kind


def test_most_values_tell_the_kind():
    assert kind_of_most([("number", 9), ("text", 1)]) == "number"
    assert kind_of_most([("number", 1), ("date", 1)]) == "text"
    assert kind_of_most([]) == "text"


@pytest.mark.parametrize(
    ("relation", "form", "rest"),
    [
        ("discontinued", "is", "discontinued"),
        ("is waterproof", "is", "waterproof"),
        ("in stock", "is", "in stock"),
        ("dishwasher safe", "is", "dishwasher safe"),
        ("has WiFi", "has", "WiFi"),
        ("parking", "has", "parking"),
        ("cable", "has", "cable"),
        ("supports Bluetooth", "does", "supports Bluetooth"),
        ("can fly", "does", "can fly"),
        ("pets allowed", "done", "pets allowed"),
        ("are batteries included", "done", "batteries included"),
        ("ISO approved", "is", "ISO approved"),
        ("fully paid", "is", "fully paid"),
        ("paid", "is", "paid"),
    ],
)
def test_how_to_ask_for_yes_or_no(relation: str, form: str, rest: str):
    assert yes_no_form(relation) == (form, rest)


def test_a_name_tells_a_person_or_a_place():
    told = [kind_of_name(each) for each in ("prime minister", "home port", "colour", "")]
    assert told == ["person", "place", None, None]


def test_plurals():
    relations = ("languages", "pets allowed", "opening hours in May", "number of seats", "status", "price")
    assert [is_plural(each) for each in relations] == [True, True, True, False, False, False]
