"""Signs beyond ASCII that people and models write, and their spelling in LaTeX."""

from __future__ import annotations

_SPELLINGS = {
    "-": "\u2212\u2013\u2014\ufe63\uff0d",  # minus sign, en dash, em dash, small hyphen-minus, fullwidth hyphen-minus
    r"\times ": "\u00d7",  # multiplication sign
    r"\cdot ": "\u00b7\u22c5",  # middle dot, dot operator
    "/": "\u00f7\u2215\u2044",  # division sign, division slash, fraction slash
    r"\pi ": "\u03c0",  # greek small letter pi
    r"\infty ": "\u221e",  # infinity
    r"\le ": "\u2264",  # less-than or equal to
    r"\ge ": "\u2265",  # greater-than or equal to
    r"\ne ": "\u2260",  # not equal to
    r"\pm ": "\u00b1",  # plus-minus sign
    r"\mp ": "\u2213",  # minus-or-plus sign
    r"\cup ": "\u222a",  # union
    r"\cap ": "\u2229",  # intersection
    r"\in ": "\u2208",  # element of
    r"^\circ ": "\u00b0\u00ba",  # degree sign, masculine ordinal indicator
    r"\emptyset ": "\u2205",  # empty set
    r"\theta ": "\u03b8",  # greek small letter theta
    r"\alpha ": "\u03b1",  # greek small letter alpha
    r"\beta ": "\u03b2",  # greek small letter beta
    r"\gamma ": "\u03b3",  # greek small letter gamma
    r"\lambda ": "\u03bb",  # greek small letter lamda
    r"\phi ": "\u03c6",  # greek small letter phi
    r"\mathbb{R}": "\u211d",  # double-struck capital r
    r"\approx ": "\u2248",  # almost equal to
    r"\langle ": "\u27e8",  # mathematical left angle bracket
    r"\rangle ": "\u27e9",  # mathematical right angle bracket
    r"\angle ": "\u2220",  # angle
    "^2": "\u00b2",  # superscript two
    "^3": "\u00b3",  # superscript three
    "^4": "\u2074",  # superscript four
    r"\frac{1}{2}": "\u00bd",  # vulgar fraction one half
    r"\frac{1}{3}": "\u2153",  # vulgar fraction one third
    r"\frac{1}{4}": "\u00bc",  # vulgar fraction one quarter
    r"\frac{3}{4}": "\u00be",  # vulgar fraction three quarters
    r"\frac{2}{3}": "\u2154",  # vulgar fraction two thirds
    "%": "\uff05",  # fullwidth percent sign
    ",": "\uff0c",  # fullwidth comma
    "(": "\uff08",  # fullwidth left parenthesis
    ")": "\uff09",  # fullwidth right parenthesis
    ":": "\uff1a",  # fullwidth colon
    "'": "\u2019",  # right single quotation mark
    " ": "\u00a0\u202f\u2009",  # no-break space, narrow no-break space, thin space
    "": "\u200b",  # zero width space
    "i": "\u2148",  # double-struck italic small i
}
SIGNS = str.maketrans({sign: spelling for spelling, signs in _SPELLINGS.items() for sign in signs})
"""A table for `str.translate`. The sign of a square root is not in it, since its argument needs braces."""
