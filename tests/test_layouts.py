"""layouts.py: what people really have is read as they mean it, or refused by file and line.

A case is a folder of small files, what `python data.py` says of it, line by line, and the labels
that each frame of training and validation has then.
"""

import os
from typing import NamedTuple

import pytest
from PIL import Image

import data
import layouts

pytestmark = pytest.mark.usefixtures("own_cache")


class Case(NamedTuple):
    table: str | bytes | None  # the content of t.csv, D the folder; None: there is none
    says: list[str]  # lines that begin with "note: " but for the table's name, then the others
    train: dict  # name: labels
    val: dict
    files: str = "a.png b.png c.png d.png"  # pictures, or texts (| a new line, _ a blank)
    flags: str = "D/t.csv"


def pets(table, *says, names=("a.png", "b.png", "c.png"), **options):
    """Of the three frames that most cases have: a cat with a dog, a dog, nothing."""
    a, b, c = names
    says = [*says, "classes: cat 1, dog 2", "val has no frame of cat, dog"]
    return Case(table, says, {a: "cat dog", b: "dog"}, {c: ""}, **options)


def rows(a, b, c, header="path,labels,split"):
    return f"{header}\na.png,{a},train\nb.png,{b},train\nc.png,{c},val\n"


LISTS = "brackets are read as lists of labels in 3 of its rows"
FOLDERS = "each frame has one label, the class folder that it is in"
HASH = "names no splits: a fifth of its rows, by a hash of the path, is val"
SEVERAL = "separate those of a frame by |, if they are several"
BLANKS = f"warning: most class names hold a blank – {SEVERAL}"
ONCE = f"warning: most classes occur once – {SEVERAL}"

CASES = {
    # labels
    "numbers, some of them two": Case(
        rows('"1,0"', "2", ""), ["its labels are separated by ','", "classes: 0 1, 1 1, 2 1",
                                "val has no frame of 0, 1, 2", ONCE],
        {"a.png": "0 1", "b.png": "2"}, {"c.png": ""},
    ),
    "listed numbers": Case(
        rows('"1,0"', '"0,1"', ""), ["its labels are separated by ','", "classes: 0 2, 1 2",
                                     "val has no frame of 0, 1"],
        {"a.png": "0 1", "b.png": "0 1"}, {"c.png": ""}, "a.png b.png c.png classes.txt=0|1",
    ),
    "numbers that end in 0": Case(
        rows("1|0", "2|0", ""), ["classes: 0 2, 1 1, 2 1", "val has no frame of 0, 1, 2", ONCE],
        {"a.png": "0 1", "b.png": "0 2"}, {"c.png": ""},
    ),
    "a listed class beside vectors": Case(
        rows('"dog,cat"', '"1,0"', ""),
        ["its labels are separated by ','", "classes: 0 1, 1 1, cat 1, dog 1",
         "val has no frame of 0, 1, cat, dog", ONCE],
        {"a.png": "cat dog", "b.png": "0 1"}, {"c.png": ""},
    ),
    "between |": pets(rows("dog|cat", "dog", "")),
    "between commas": pets(rows('"dog,cat"', "dog", ""), "its labels are separated by ','"),
    "between semicolons": pets(rows("dog; cat", "dog", ""), "its labels are separated by ';'"),
    "a Python list": pets(rows("\"['dog', 'cat']\"", "['dog']", "[]"), LISTS),
    "a JSON list": pets(rows('"[""dog"", ""cat""]"', '"[""dog""]"', "[]"), LISTS),
    "a NumPy list": pets(rows("['dog' 'cat']", "['dog']", "[]"), LISTS),
    "a set, a tuple, bare": pets(rows("\"{'dog', 'cat'}\"", "('dog')", "[ ]"), LISTS),
    "bare names in a list": pets(rows('"[cat, dog]"', "[dog]", "[None]"), LISTS,
                                 "None is read as no label in 1 of its rows"),
    "escapes in a list": Case(
        rows("\"['it\\'s', 'b']\"", "['b']", "['b']"),
        [LISTS, "classes: b 3, it's 1", "val has no frame of it's"],
        {"a.png": "b it's", "b.png": "b"}, {"c.png": "b"},
    ),
    "numbers": Case(
        rows('"[1, 2]"', "[2]", "[1]"), [LISTS, "classes: 1 2, 2 2", "val has no frame of 2"],
        {"a.png": "1 2", "b.png": "2"}, {"c.png": "1"},
    ),
    "missing values": Case(
        rows("dog|cat", "nan", "None"),
        ["nan is read as no label in 1 of its rows", "None is read as no label in 1 of its rows",
         "classes: cat 1, dog 1", "val has no frame of cat, dog", ONCE],
        {"a.png": "cat dog", "b.png": ""}, {"c.png": ""},
    ),
    "a class called none": Case(
        rows("dog", "none", "none"), ["classes: dog 1, none 2", "val has no frame of dog"],
        {"a.png": "dog", "b.png": "none"}, {"c.png": "none"},
    ),
    "a listed class called None": Case(
        rows("dog", "None", "None"), ["classes: dog 1, None 2", "val has no frame of dog"],
        {"a.png": "dog", "b.png": "None"}, {"c.png": "None"},
        files="a.png b.png c.png classes.txt=dog|None",
    ),
    "names with brackets": Case(
        rows("it's|dog (small)", "a) dog", "(dog)"),
        ["classes: (dog) 1, a) dog 1, dog (small) 1, it's 1", "train has no frame of (dog)",
         "val has no frame of a) dog, dog (small), it's", ONCE],
        {"a.png": "dog (small) it's", "b.png": "a) dog"}, {"c.png": "(dog)"},
    ),
    "listed names with commas": Case(
        rows('"dog, brown|cat"', '"dog, brown"', ""),
        ["classes: cat 1, dog, brown 2", "val has no frame of cat, dog, brown"],
        {"a.png": "cat dog, brown", "b.png": "dog, brown"}, {"c.png": ""},
        files="a.png b.png c.png classes.txt=cat|dog,_brown",
    ),
    "most classes once": Case(
        rows("dog cat", "cat bird", "dog"),
        ["classes: cat bird 1, dog 1, dog cat 1", "train has no frame of dog",
         "val has no frame of cat bird, dog cat", ONCE, BLANKS],
        {"a.png": "dog cat", "b.png": "cat bird"}, {"c.png": "dog"},
    ),
    "twelve classes": Case(
        rows("a|b|c|d|e|f|g|h|i|j|k|l", "b", "a"),
        ["classes: a 2, b 2, c 1, d 1, e 1, f 1, g 1, h 1, i 1, j 1 and 2 more",
         "val has no frame of b, c, d, e, f, g, h, i, j, k and 1 more", ONCE],
        {"a.png": "a b c d e f g h i j k l", "b.png": "b"}, {"c.png": "a"},
    ),
    "numbers as NumPy writes them": Case(
        rows("[0 2]", "[2]", "[0]"), [LISTS, "classes: 0 2, 2 2", "val has no frame of 2"],
        {"a.png": "0 2", "b.png": "2"}, {"c.png": "0"},
    ),
    "an array, a frozenset, nothing": pets(
        rows("\"array(['dog', 'cat'], dtype=object)\"", "frozenset({'dog'})", "set()"), LISTS
    ),
    "missing values in a list": pets(
        rows("\"['dog', nan, 'cat']\"", "\"['dog', None]\"", "()"), LISTS
    ),
    "a list over two lines": pets(
        rows("\"['dog'\n 'cat']\"", "dog", ""),
        "brackets are read as lists of labels in 1 of its rows",
    ),
    "between blanks, words of their own": Case(
        rows("scab rust", "scab", "rust"),
        ["its labels are separated by ' '", "classes: rust 2, scab 2", "val has no frame of scab"],
        {"a.png": "rust scab", "b.png": "scab"}, {"c.png": "rust"},
    ),
    "between blanks, listed words": Case(
        rows("dog cat", "dog cat", "dog cat"),
        ["its labels are separated by ' '", "classes: dog 3, cat 3"],
        {"a.png": "dog cat", "b.png": "dog cat"}, {"c.png": "dog cat"},
        files="a.png b.png c.png classes.txt=dog|cat",
    ),
    "names with blanks": Case(
        rows("brown dog", "brown dog", "brown dog"), ["classes: brown dog 3", BLANKS],
        {"a.png": "brown dog", "b.png": "brown dog"}, {"c.png": "brown dog"},
    ),
    "a row a label": pets(
        "image_id,label,split\na.png,dog,train\na.png,cat,train\nb.png,dog,train\nc.png,,val\n"
        "a.png,dog,train\n",
        "the paths are in column image_id", "the labels are in column label",
        "rows of one file are taken together, for 1 of its files",
    ),
    # columns
    "semicolons": pets(rows("dog|cat", "dog", "").replace(",", ";"),
                       "its columns are separated by ';'"),
    "Excel's": pets(
        "sep=;\r\nPath;Labels;Split;;\r\na.png;dog,cat;train;;\r\n;;;;\r\nb.png;dog;train;;\r\n\r\n"
        "c.png;;val;;\r\n",
        "its columns are separated by ';'", "the paths are in column Path",
        "the labels are in column Labels", "its labels are separated by ','",
    ),
    "tabs in UTF-16": pets(rows("dog|cat", "dog", "").replace(",", "\t").encode("utf-16"),
                           r"its columns are separated by '\t'"),
    "a byte order mark": pets("\ufeff" + rows("dog|cat", "dog", "")),
    "pandas' index": pets(
        ",Image,Label,split\n0,a.png,dog|cat,train\n1,b.png,dog,train\n2,c.png,,val\n",
        "the paths are in column Image", "the labels are in column Label",
        "ignored columns: the first, an index",
    ),
    "pandas' index, read once more": pets(
        "Unnamed: 0,file_name,tags,split\n0,a.png,dog|cat,train\n1,b.png,dog,train\n2,c.png,,val\n",
        "the paths are in column file_name", "the labels are in column tags",
        "ignored columns: Unnamed: 0",
    ),
    "further columns": pets(
        "id,path,width,label,dog,split\n7,a.png,9,dog|cat,0,train\n8,b.png,9,dog,0,train\n"
        "9,c.png,9,,0,val\n",
        "the labels are in column label", "ignored columns: id, width, dog",
    ),
    "floats of 0 and 1": pets(rows("1.0,1.0", "1.0,0.0", "0.0,0.0", "path,dog,cat,split")),
    "true and false": pets(rows("True,TRUE", "true,False", "False,false", "path,dog,cat,split")),
    "other forms of 0 and 1": pets(rows("1.00,1e+00", "1,0.00", "0,0e0", "path,dog,cat,split")),
    "R's": pets(
        '"","path","labels","split"\n"1","a.png","dog|cat","train"\n"2","b.png","dog","train"\n'
        '"3","c.png",NA,"val"\n',
        "ignored columns: the first, an index", "NA is read as no label in 1 of its rows",
    ),
    "indices of two writings": pets(
        ",Unnamed: 0,path,labels,split,Unnamed: 3\n0,0,a.png,dog|cat,train,\n1,1,b.png,dog,train,\n"
        "2,2,c.png,,val,\n",
        "ignored columns: the first, an index, Unnamed: 0, Unnamed: 3",
    ),
    "a caption of two lines": pets(
        'path,labels,caption,split\na.png,dog|cat,"two\nlines",train\nb.png,dog,x,train\n'
        "c.png,,y,val\n", "ignored columns: caption",
    ),
    "columns of other things": pets(
        rows("1,1,30,park", "1,0,40,sea", "0,0,50,park", "path,dog,cat,width,place,split"),
        "ignored columns: width, place; classes are dog, cat",
    ),
    "columns that count": pets(
        rows("1,1,1", "1,0,7", "0,0,0", "path,dog,cat,rain,split"),
        "ignored columns: rain; classes are dog, cat",
        files="a.png b.png c.png classes.txt=cat|dog",
    ),
    # splits
    "other names of splits": Case(
        "path,labels,SPLIT\na.png,dog,TRAIN\nb.png,dog,training\nc.png,dog,Validation\nd.png,,dev\n",
        ["classes: dog 3"], {"a.png": "dog", "b.png": "dog"}, {"c.png": "dog", "d.png": ""},
    ),
    "set beside is_valid": pets(
        "path,labels,set,is_valid\na.png,dog|cat,s0,0\nb.png,dog,s1,0\nc.png,,s2,1\n",
        "the splits are in column is_valid", "ignored columns: set",
    ),
    "fastai's": pets(
        "fname,dog,cat,is_valid\na.png,1,1,False\nb.png,1,0,0\nc.png,0,0,True\n",
        "the paths are in column fname", "the splits are in column is_valid",
    ),
    "is_train beside labels": pets(
        "img,labels,is_train\na.png,dog|cat,1\nb.png,dog,1\nc.png,,0\n",
        "the paths are in column img", "the splits are in column is_train",
    ),
    "a column set": pets(
        "path,labels,set\na.png,dog|cat,train\nb.png,dog,train\nc.png,,valid\nd.png,,test\n",
        "the splits are in column set",
    ),
    "columns set and fold of other things": Case(
        "path,dog,set,fold\na.png,1,7,0\nb.png,1,8,1\nc.png,0,train,0\n",
        ["ignored columns: set, fold; classes are dog", HASH, "classes: dog 2"],
        {"a.png": "dog", "c.png": ""}, {"b.png": "dog"},
    ),
    "an empty split": Case(
        "path,labels,split\na.png,dog,train\nb.png,dog,\nc.png,,val\nd.png,,\n",
        ["2 rows name no split: by a hash of the path, a fifth of them is val", "classes: dog 2"],
        {"a.png": "dog", "d.png": ""}, {"b.png": "dog", "c.png": ""},
    ),
    "no splits": Case(
        "path,labels\na.png,dog\nb.png,dog\nc.png,\n", [HASH, "classes: dog 2"],
        {"a.png": "dog", "c.png": ""}, {"b.png": "dog"},
    ),
    # paths
    "backslashes": pets(
        "path,labels,split\nx\\a.png,dog|cat,train\nx\\y\\b.png,dog,train\nc.png,,val\n",
        r"\ is read as / in 2 of its paths", names=("x/a.png", "x/y/b.png", "c.png"),
        files="x/a.png x/y/b.png c.png",
    ),
    "absolute paths": pets(
        "path,labels,split\nD/a.png,dog|cat,train\nD/b.png,dog,train\nc.png,,val\n",
        "absolute paths are read as relative ones in 2 of its rows",
    ),
    "images elsewhere": pets(
        "path,labels,split\na.png,dog|cat,train\nD/i/b.png,dog,train\nx/c.png,,val\n",
        "absolute paths are read as relative ones in 1 of its rows",
        names=("a.png", "b.png", "x/c.png"), files="i/a.png i/b.png i/x/c.png",
        flags="D/t.csv --images D/i",
    ),
    "names without extension": pets(
        "path,labels,split\na,dog|cat,train\nb,dog,train\nx/c,,val\n",
        "a name without extension means the one file of that name in 3 of its rows",
        names=("a", "b", "x/c"), files="a.jpg b.png b.txt=x x/c.tif x/c.2.tif",
    ),
    # folders; the table is the folder's own name
    "class folders": Case(
        None,
        [FOLDERS, HASH, "classes: cat 3, dog 2", "val has no frame of cat"],
        {"cat/1.png": "cat", "cat/2.png": "cat", "cat/6.png": "cat", "dog/1.png": "dog"},
        {"dog/3.png": "dog"},
        files="cat/1.png cat/2.png cat/6.png dog/1.png dog/3.png", flags="D",
    ),
    "train and val of class folders": Case(
        None,
        ["4 of 5 files are read; left out: 1 hidden", FOLDERS,
         "warning: copies of frames of train are in val, 1 of 1: Valid/dog/1.png",
         "classes: cat 1, dog 3", "val has no frame of cat"],
        {"train/cat/1.png": "cat", "train/dog/1.png": "dog", "train/dog/2.png": "dog"},
        {"Valid/dog/1.png": "dog"},
        files="train/dog/1.png train/dog/2.png train/.DS_Store=x Valid/dog/1.png train/cat/1.png",
        flags="D",
    ),
    "splits of other names": Case(
        None, [FOLDERS, "classes: cat 1, dog 2", "val has no frame of cat"],
        {"training_set/cat/1.png": "cat", "training_set/dog/1.png": "dog"},
        {"val_set/dog/9.png": "dog"},
        files="training_set/cat/1.png training_set/dog/1.png test_set/cat/1.png val_set/dog/9.png",
        flags="D",
    ),
    "splits below the classes": Case(
        None, [FOLDERS, "classes: cat 2, dog 2"],
        {"cat/train/1.png": "cat", "dog/train/1.png": "dog"},
        {"cat/val/2.png": "cat", "dog/val/2.png": "dog"},
        files="cat/train/1.png dog/train/1.png cat/val/2.png dog/val/2.png", flags="D",
    ),
    "folders that hold all others": Case(
        None, [FOLDERS, "classes: cat 2, dog 2"],
        {"x/train/images/cat/1.png": "cat", "x/train/images/dog/1.png": "dog"},
        {"x/val/images/cat/2.png": "cat", "x/val/images/dog/2.png": "dog"},
        files="x/train/images/cat/1.png x/train/images/dog/1.png x/val/images/cat/2.png "
        "x/val/images/dog/2.png", flags="D",
    ),
    "a test without labels": Case(
        None, ["test/0.png, test/1.png are in no class folder, and left out", FOLDERS,
               "classes: cat 2, dog 2"],
        {"train/cat/1.png": "cat", "train/dog/1.png": "dog"},
        {"val/cat/2.png": "cat", "val/dog/2.png": "dog"},
        files="train/cat/1.png train/dog/1.png val/cat/2.png val/dog/2.png test/0.png test/1.png",
        flags="D",
    ),
    "an empty class, and folders below": Case(
        None,
        ["5 of 6 files are read; left out: 1 .txt", FOLDERS,
         "folders below the classes are none: dog/x", "folders without a picture are no classes: "
         "bird", HASH, "classes: cat 2, dog 3"],
        {"cat/1.png": "cat", "dog/1.png": "dog", "dog/x/2.png": "dog"},
        {"cat/5.png": "cat", "dog/x/3.png": "dog"},
        files="cat/1.png cat/5.png dog/1.png dog/x/2.png dog/x/3.png bird/n.txt=x", flags="D",
    ),
    "folders as archives unpack": Case(
        None,
        [FOLDERS,
         "warning: copies of frames of train are in val, 1 of 1: seg_val/seg_val/cat/1.png",
         "classes: cat 2, dog 2", "val has no frame of dog"],
        {"seg_train/seg_train/cat/1.png": "cat", "seg_train/seg_train/dog/1.png": "dog",
         "seg_train/seg_train/dog/2.png": "dog"},
        {"seg_val/seg_val/cat/1.png": "cat"},
        files="seg_train/seg_train/cat/1.png seg_train/seg_train/dog/1.png "
        "seg_train/seg_train/dog/2.png seg_val/seg_val/cat/1.png", flags="D",
    ),
    "a test without labels, in a folder": Case(
        None, ["test/images/0.png are in no class folder, and left out", FOLDERS,
               "classes: cat 2, dog 2"],
        {"train/cat/1.png": "cat", "train/dog/1.png": "dog"},
        {"val/cat/2.png": "cat", "val/dog/2.png": "dog"},
        files="train/cat/1.png train/dog/1.png val/cat/2.png val/dog/2.png test/images/0.png",
        flags="D",
    ),
    "a class called train": Case(
        None, [FOLDERS, HASH, "classes: bus 2, train 2", "val has no frame of bus"],
        {"bus/1.png": "bus", "bus/5.png": "bus", "train/1.png": "train"}, {"train/2.png": "train"},
        files="bus/1.png bus/5.png train/1.png train/2.png", flags="D",
    ),
    "a folder with one table": pets(
        rows("dog|cat", "dog", ""), "is read, as the one table of its folder",
        files="a.png b.png c.png notes.txt=x .old.csv=x", flags="D",
    ),
}  # fmt: skip

UNLABELLED = {
    "a folder": (
        None, "a.png x/b.jfif c.ppm d.jp2 1.heic=x 2.HEIC=x ._a.png=x .x/b.png __MACOSX/a.png n=x",
        "D", "4 of 10 files are read; left out: 2 .heic, 3 hidden, 1 without extension",
        ["a.png", "c.ppm", "d.jp2", "x/b.jfif"],
    ),
    "a picture beside folders": (
        None, "cat/1.png cat/5.png dog/1.png dog/2.png cover.png", "D",
        "cover.png are in no class folder, so no folder is taken for a class",
        ["cat/1.png", "cat/5.png", "cover.png", "dog/1.png", "dog/2.png"],
    ),
    "folders of YOLO": (
        None, "train/images/1.png train/labels/1.txt=x valid/images/2.png", "D",
        ("2 of 3 files are read; left out: 1 .txt", "no class is made of images, with 2 pictures"),
        ["train/images/1.png", "valid/images/2.png"],
    ),
    "folders of a picture each": (
        None, "x/a.png y/b.png", "D", "no class is made of x, y, with 2 pictures",
        ["x/a.png", "y/b.png"],
    ),
    "an export of VGG's Image Annotator": (
        "filename,file_size,region_count,region_id,region_attributes\n"
        'a.png,9,1,0,"{""class"":""dog""}"\nb.png,9,1,0,"{""class"":""cat""}"\n',
        "a.png b.png", "D/t.csv", ("the paths are in column filename",
        "ignored columns: file_size, region_count, region_id, region_attributes"),
        ["a.png", "b.png"],
    ),
    "a column of paths": ("path\na.png\nb.png\n", "a.png b.png", "D/t.csv", "", ["a.png", "b.png"]),
    "no label in any row": (
        "path,labels\na.png,\nb.png,NaN\n", "a.png b.png", "D/t.csv",
        ("NaN is read as no label in 1 of its rows",
         "column labels has no label in any row, so its images are without labels"),
        ["a.png", "b.png"],
    ),
}  # fmt: skip

NAMES = "separate them by |, or list the name in classes.txt"
NUMBERS = "may be numbers and no labels – write the names of classes, or list these in classes.txt"
BELOW = "must name a file below the CSV's folder, or --images DIR"
REFUSED = {  # table, lines of the message, files, flags
    "two separators": (
        rows('"dog,cat"', "dog|cat", ""),
        ["D/t.csv:2: 'dog,cat' holds ',', where other labels are separated by '|' – use one of "
         "them, or list the names in classes.txt"],
    ),
    "no lists": (
        rows("\"['dog', 'cat'\"", "{dog}", "\"{'a': 1}\"") + "d.png,[['dog']],val\n",
        [f"D/t.csv:2: \"['dog', 'cat'\" is no list of labels – {NAMES}",
         f"D/t.csv:3: '{{dog}}' is no list of labels – {NAMES}",
         f"D/t.csv:4: \"{{'a': 1}}\" is no list of labels – {NAMES}",
         f"D/t.csv:5: \"[['dog']]\" is no list of labels – {NAMES}"],
    ),
    "vectors of two": (
        rows('"[1, 0]"', '"0,1"', "") + 'd.png,"[True, False]",val\n',
        [f"D/t.csv:2: '[1, 0]' {NUMBERS}", f"D/t.csv:3: '0,1' {NUMBERS}",
         f"D/t.csv:5: '[True, False]' {NUMBERS}"],
    ),
    "vectors with blanks": (
        rows("1 0 0", "dog", ""), [f"D/t.csv:2: '1 0 0' is no list of labels – {NAMES}"],
    ),
    "decimal commas": (
        "path;labels;split\na.png;1,0;train\nb.png;2,0;train\nc.png;;val\n",
        [f"D/t.csv:2: '1,0' {NUMBERS}", f"D/t.csv:3: '2,0' {NUMBERS}"],
    ),
    "a class that cannot be written": (
        'path,"dog\n(big)",cat\na.png,1,0\nb.png,0,1\n',
        ["D/t.csv:1: no class can be called 'dog\\n(big)' – rename it"],
    ),
    "a listed class that cannot be written": (
        "path,labels\na.png,dog\tcat\n",
        ["D/classes.txt:2: no class can be called 'dog\\tcat' – rename it"],
        "a.png classes.txt=bird|dog\tcat",
    ),
    "numbers in place of columns": (
        rows('"[1, 0, 1]"', "[1. 0. 0.]", "[False True False]") + "d.png,[0 ... 1],val\n",
        [f"D/t.csv:2: '[1, 0, 1]' is no list of labels – {NAMES}",
         f"D/t.csv:3: '[1. 0. 0.]' is no list of labels – {NAMES}",
         f"D/t.csv:4: '[False True False]' is no list of labels – {NAMES}",
         f"D/t.csv:5: '[0 ... 1]' is no list of labels – {NAMES}"],
    ),
    "lists between separators": (
        rows("[dog]|[cat]", "[dog]", "[cat]"),
        [f"D/t.csv:2: '[dog]|[cat]' is no list of labels – {NAMES}"],
    ),
    "a typing error among splits": (
        "path,labels,set\na.png,dog,train\nb.png,dog,val\nc.png,dog,vall\n",
        ["D/t.csv:4: column set is 'vall' – must be train, val, test; did you mean val?"],
    ),
    "classes of which some have splits": (
        None, ["D: bird/1.png, bird/2.png are in no split, and others are – move them"],
        "dog/train/1.png dog/val/2.png cat/train/1.png cat/val/2.png bird/1.png bird/2.png", "D",
    ),
    "a folder beside a split": (
        None,
        ["D: the folders test1 are no splits, and the others are – move them out, or rename them"],
        "train/dog/1.png train/cat/1.png test1/1.png test1/2.png", "D",
    ),
    "half brackets, errors, lines": (
        rows("(dog|cat)", "#REF!", '"dog|x\nd.png|dog"'),
        [f"D/t.csv:2: '(dog|cat)' is no list of labels – {NAMES}",
         f"D/t.csv:3: '#REF!' is no list of labels – {NAMES}",
         rf"D/t.csv:4: 'dog|x\nd.png|dog' is no list of labels – {NAMES}"],
    ),
    "numbers of two writings": (
        rows("1", "1.0", "2"),
        ["D/t.csv:3: label '1.0' looks like '1' (D/t.csv:2) – write both alike, or list both in "
         "classes.txt"],
    ),
    "blanks of two lengths": (
        rows("brown dog", "brown  dog", "cat"),
        ["D/t.csv:2: label 'brown dog' looks like 'brown  dog' (D/t.csv:3) – write both alike, or "
         "list both in classes.txt"],
    ),
    "a path of two lines": (
        'path,labels\n"a.png\nb.png",dog\n', ["D/t.csv:2: a quoted cell goes on for 2 lines – end "
                                               "it in one"],
    ),
    "a header alone": ("path,labels\n", ["D/t.csv: has no row – add some"]),
    "a workbook": (
        b"PK\3\4...", ["D/t.csv: a workbook or an archive, no text – save it as .csv"],
    ),
    "no classes in classes.txt": (
        rows("dog", "dog", "dog"),
        ["D/classes.txt: names no class – write one a line, or remove the file"],
        "a.png b.png c.png classes.txt=|",
    ),
    "a folder beside the splits": (
        None,
        ["D: the folders unused are no splits, and the others are – move them out, or rename them"],
        "train/dog/1.png train/cat/1.png val/dog/2.png unused/dog/3.png", "D",
    ),
    "a file of another kind": (
        None, ["D/l.xlsx: no picture that can be read – name a folder of pictures, or a table that "
               "is saved as .csv"], "l.xlsx=x", "D/l.xlsx",
    ),
    "no column of paths": (
        "pth,lables\na.png,dog\n",
        ["D/t.csv:1: the header must name a column of paths (path, file, filename, file_name, "
         "image_path, image, image_id, id, name, file_path, filepath, fname, image_name, img) – it "
         "is ['pth', 'lables']; did you mean path?"],
    ),
    "an empty table": (
        " \n\n", ["D/t.csv:1: the header must name path and labels – there is none"],
    ),
    "a class twice": (
        "path,dog,dog\na.png,1,1\n",
        ["D/t.csv:1: the header names dog more than once – rename or remove one"],
    ),
    "a column without a name": (
        "path,labels,\na.png,dog,x\n",
        ["D/t.csv:1: column 3 has no name – name it or remove it"],
    ),
    "an index of words": (
        ",path,labels\nx,a.png,dog\n", ["D/t.csv:1: column 1 has no name – name it or remove it"],
    ),
    "a mixed column": (
        "path,dog,age\na.png,1,1\nb.png,0,37\nc.png,1,4\nd.png,1,\n",
        ["D/t.csv:3: column age is '37' in line 3, '4' in line 4, '' in line 5 – must be 0 or 1; "
         "if it is no class, list those that are in classes.txt beside the table"],
    ),
    "a listed class without a column": (
        "path,dog\na.png,1\nb.png,0\n",
        ["D/t.csv:1: has no column of cat, of the classes cat, dog – add what is true of each "
         "frame"], "a.png b.png classes.txt=cat|dog",
    ),
    "splits": (
        "path,labels,split\na.png,dog,trian\nb.png,dog,holdout\n",
        ["D/t.csv:2: column split is 'trian' – must be train, val, test; did you mean train?",
         "D/t.csv:3: column split is 'holdout' – must be train, val, test"],
    ),
    "paths outside": (
        "path,labels\n/etc/hosts,dog\n..\\a.png,dog\nC:\\a.png,dog\n,x\n",
        [f"D/t.csv:2: path '/etc/hosts' – {BELOW}", rf"D/t.csv:3: path '..\\a.png' – {BELOW}",
         rf"D/t.csv:4: path 'C:\\a.png' – {BELOW}", f"D/t.csv:5: path '' – {BELOW}"],
    ),
    "paths outside --images": (
        "path,labels,split\nD/a.png,dog,train\n../a.png,dog,val\n",
        ["D/t.csv:3: path '../a.png' – must name a file below --images"], "i/a.png a.png",
        "D/t.csv --images D/i",
    ),
    "two files of a name": (
        "path,labels,split\na,dog,train\nb,dog,val\n",
        ["D/t.csv:2: a: a.jpg, a.png have that name – write the extension"], "a.png a.jpg b.png",
    ),
    "no file of a name": (
        "path,labels,split\na,dog,train\nb.png,dog,val\n",
        ["D/t.csv:2: D/a: No such file or directory – restore it or drop the line"], "b.png",
    ),
    "a file in two splits": (
        "path,labels,split\na.png,dog,train\na.png,cat,val\nb.png,cat,val\n",
        ["D/t.csv:3: a.png is in split val, and in train at D/t.csv:2 – keep it in one"],
    ),
    "a file in two rows of 0 and 1": (
        "path,dog\na.png,1\na.png,0\nb.png,1\n",
        ["D/t.csv:3: a.png stands already at D/t.csv:2 – drop one"],
    ),
    "no negative is all there is": (
        "path,dog\na.png,0\nb.png,0\n",
        ["D/t.csv: names no label in any row – fill the column labels"],
    ),
    "--images of a folder": (
        None, ["--images D: D is no table, whose paths could be below it"], "a.png", "D --images D",
    ),
    "two tables": (
        "path,labels\na.png,x\n", ["D: holds the tables b.tsv, t.csv – name one of them"],
        "a.png b.tsv=x", "D",
    ),
    "unlisted labels": (
        rows("dgo", "dgo", "dgo|bird"),
        ["D/t.csv:2 (and 2 more rows): unknown label 'dgo' – classes are cat, dog; did you mean "
         "dog?", "D/t.csv:4: unknown label 'bird' – classes are cat, dog"],
        "a.png b.png c.png classes.txt=cat|dog",
    ),
    "no validation": (
        "path,labels,split\na.png,dog,train\nb.png,dog,test\n",
        ["D/t.csv: no row is of split val, but of test, train – add some, or take another"],
    ),
    "no pictures": (
        None, ["D: no picture that can be read – name a folder of pictures, or a table that "
               "is saved as .csv"], "1.heic=x", "D",
    ),
    "no --images": (
        "path,labels\na.png,dog\n",
        ["--images D/gone: does not exist, or may not be read – name an A2D tree, a .csv or a "
         "folder of images"], "a.png", "D/t.csv --images D/gone",
    ),
    "many files of one fault": (
        "path,labels,split\n" + "".join(f"{i}.png,x,train\n" for i in range(128)) + "a.png,x,val\n",
        ["D/t.csv:2: 128 files: cannot be read (not an image) – replace or remove it: D/0.png, "
         "D/1.png, D/2.png and 125 more"], "a.png " + " ".join(f"{i}.png=x" for i in range(128)),
    ),
    "a pointer and a page": (
        rows("x", "x", "x"),
        ["D/t.csv:2: D/a.png: a git-lfs pointer, not an image – run git lfs pull",
         "D/t.csv:3: D/b.png: a web page, not an image – download the file itself"],
        "a.png=version_https://git-lfs.github.com/spec/v1 b.png=|<!DOCTYPE_html> c.png",
    ),
    "Latin-1": (
        "path,labels\na.png,gr\xfcn\n".encode("latin-1"),
        ["D/t.csv:2: not UTF-8 – save it as UTF-8"],
    ),
}  # fmt: skip


def fill(folder, table, files):
    for file in files.split(" "):
        name, _, text = file.partition("=")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if text:
            (folder / name).write_text(text.replace("|", "\n").replace("_", " "))
        else:
            Image.new("RGB", (6, 4), (10, 20, 30)).save(folder / name)
    if table is not None:
        table = table if isinstance(table, bytes) else table.encode()
        (folder / "t.csv").write_bytes(table.replace(b"D/", f"{folder}/".encode()))


def checked(folder, flags, capsys):
    """What `python data.py FLAGS` prints, D for the folder, without the lines of figures; its code.
    """
    code = data.main([flag.replace("D", str(folder)) for flag in flags.split()])
    out, err = (text.replace(str(folder), "D") for text in capsys.readouterr())
    lines = [line for line in out.splitlines() if "positives a class" not in line]
    return code, [line.removeprefix("note: ").replace("D/t.csv: ", "") for line in lines], err


def labels_of(dataset):
    """{name: its labels, sorted}."""
    return {
        name: " ".join(c for c, has in zip(dataset.class_names, row, strict=True) if has)
        for name, row in zip(dataset.names, dataset.labels, strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_what_people_have_is_read_as_they_mean_it(tmp_path, capsys, name):
    case = CASES[name]
    fill(tmp_path, case.table, case.files)
    code, said, err = checked(tmp_path, case.flags, capsys)
    assert (code, err) == (0, "")
    assert [line.removeprefix("D: ") for line in said] == case.says

    spec, *images = case.flags.replace("D", str(tmp_path)).split(" --images ")
    sets = data.load(spec, images=images[0] if images else None)
    assert {split: labels_of(sets[split]) for split in sets} == {
        "train": case.train, "val": case.val
    }  # fmt: skip
    for split in sets.values():
        assert [frame.shape for _, frame, *_ in split] == [(3, 4, 6)] * len(split)


@pytest.mark.parametrize("name", UNLABELLED)
def test_images_without_labels_are_all_read(tmp_path, capsys, name):
    table, files, flags, says, names = UNLABELLED[name]
    says = [says] if isinstance(says, str) else list(says)
    fill(tmp_path, table, files)
    code, said, err = checked(tmp_path, flags, capsys)
    assert (code, err) == (0, "")
    assert [line.removeprefix("D: ") for line in said] == [
        *filter(None, says), f"all {len(names)} frames"
    ]  # fmt: skip
    dataset = data.load(flags.replace("D", str(tmp_path)))["all"]
    assert dataset.names == names and dataset.labels is None and dataset[1][2] is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_plain_meaning_is_refused_by_line(tmp_path, capsys, name):
    table, lines, *where = REFUSED[name]
    files, flags = (where + ["a.png b.png c.png d.png", "D/t.csv"][len(where) :])[:2]
    fill(tmp_path, table, files)
    code, _, err = checked(tmp_path, flags, capsys)
    head = "data.py: " if len(lines) == 1 else f"data.py: {len(lines)} problems:\n  "
    assert (code, err) == (3, head + "\n  ".join(lines) + "\n")


def test_a_list_of_validation_frames_of_its_own(tmp_path, capsys):
    """All of the one is trained on, all of the other is scored, with the classes of the first."""
    fill(tmp_path, "path,labels\na.png,dog|cat\nb.png,dog\n", "a.png b.png v/c.png v/d.png")
    (tmp_path / "v/v.csv").write_text("path,labels\nc.png,dog\nd.png,\n")
    flags = "D/t.csv --val D/v/v.csv"
    assert checked(tmp_path, flags, capsys) == (
        0, ["classes: cat 1, dog 3", "val has no frame of cat"], ""
    )  # fmt: skip
    sets = data.load(tmp_path / "t.csv", val=tmp_path / "v")  # the folder has one table
    assert labels_of(sets["train"]) == {"a.png": "cat dog", "b.png": "dog"}
    assert labels_of(sets["val"]) == {"c.png": "dog", "d.png": ""}

    capsys.readouterr()
    (tmp_path / "v/v.csv").write_text("path,labels,split\nc.png,dgo,train\n")
    code, said, err = checked(tmp_path, flags, capsys)
    assert code == 3 and said == ["splits that a table names are not heeded, since --val names one"]
    assert err == ("data.py: D/v/v.csv:2: unknown label 'dgo' – classes are cat, dog; did you mean "
                   "dog?\n")  # fmt: skip
    (tmp_path / "v/v.csv").write_text("path,labels\nD/a.png,dog\n".replace("D", str(tmp_path)))
    assert checked(tmp_path, "D/t.csv --images D --val D/v/v.csv", capsys)[2] == (
        "data.py: D/v/v.csv:2: a.png is also in train (D/t.csv:2) – keep it out of val\n"
    )


@pytest.mark.parametrize("files", ["x/train/1.png x/val/2.png", "x/1.png"])
def test_a_split_of_frames_that_have_none_is_refused(tmp_path, files):
    fill(tmp_path, None, files)
    with pytest.raises(data.DataError, match="has neither labels nor splits, so that --split val"):
        data.load(tmp_path / "x", ("val",))


@pytest.mark.parametrize("files, missing", [
    ("videoset.csv=x Annotations/col/v/1.png clips320H/v.mp4=x", "pngs320H"),
    ("videoset.csv=x clips320H/v.mp4=x", "pngs320H and Annotations"),
    ("videoset.csv=x pngs320H/v/1.png", "Annotations"),
    ("Annotations/col/v/1.png clips320H/v.mp4=x", "pngs320H"),
])
@pytest.mark.parametrize("below", ["", "Release/", "A2D/"])
def test_a_part_of_an_a2d_tree_is_told(tmp_path, capsys, files, missing, below):
    """As it is unpacked, before frames are extracted: label maps are no photographs."""
    fill(tmp_path, None, " ".join(below + file for file in files.split()))
    code, _, err = checked(tmp_path, "D", capsys)
    where = f"D/{below}".rstrip("/")
    assert code == 3 and err.startswith(f"data.py: {where}: an A2D tree without {missing} – README")
    if "videoset.csv" in files:
        with pytest.raises(data.DataError, match="is A2D's list of clips – name the folder"):
            data.load(tmp_path / below / "videoset.csv")


def test_problems_come_before_a_split_that_is_none(tmp_path):
    fill(tmp_path, "path,labels\n../a.png,\n", "a.png")
    with pytest.raises(data.DataError, match="must name a file below"):
        data.load(tmp_path / "t.csv", ("val",), classes=["dog"])


def test_frames_of_one_name_size_and_end_are_no_copies(tmp_path, capsys):
    """A BMP ends with its upper rows, which in films are black."""
    for name, level in (("train/dog/1.bmp", 50), ("train/dog/2.bmp", 60), ("train/cat/3.bmp", 70),
                        ("val/dog/1.bmp", 90)):  # fmt: skip
        image = Image.new("RGB", (40, 80), (level, level, level))
        image.paste("black", (0, 0, 40, 40))
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name)
    code, said, _ = checked(tmp_path, "D", capsys)
    assert code == 0 and "cop" not in "".join(said)
    train, val = data.load(tmp_path).values()
    assert val.identities().tolist()[0] in train.identities().tolist()


def test_linked_folders_are_read_once(tmp_path, capsys):
    """A class folder may lie elsewhere; a link to what is read anyway, or in a circle, is not."""
    fill(tmp_path, None, "x/cat/1.png x/cat/5.png y/1.png y/2.png")
    (tmp_path / "x/dog").symlink_to(tmp_path / "y")
    (tmp_path / "y/back").symlink_to(tmp_path / "y")
    (tmp_path / "x/kitten").symlink_to(tmp_path / "x/cat")
    code, said, err = checked(tmp_path, "D/x", capsys)
    assert (code, err) == (0, "") and said[0] == (
        "D/x: 4 of 6 files are read; left out: 2 linked again"
    )
    sets = data.load(tmp_path / "x")
    found = {name: c for split in sets.values() for name, c in labels_of(split).items()}
    assert found == {"cat/1.png": "cat", "cat/5.png": "cat", "dog/1.png": "dog", "dog/2.png": "dog"}


def test_a_file_is_one_file_by_any_link(tmp_path, capsys):
    fill(tmp_path, "path,labels,split\na.png,dog,train\nl.png,dog,val\n", "a.png v/b.png")
    (tmp_path / "l.png").symlink_to(tmp_path / "a.png")
    code, _, err = checked(tmp_path, "D/t.csv", capsys)
    assert code == 3 and "D/t.csv:3: l.png is in split val, and in train at D/t.csv:2" in err
    (tmp_path / "t.csv").write_text("path,labels\na.png,dog\n")
    (tmp_path / "v/l.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "v/v.csv").write_text("path,labels\nl.png,dog\n")
    code, _, err = checked(tmp_path, "D/t.csv --val D/v/v.csv", capsys)
    assert code == 3 and "D/v/v.csv:2: l.png is also in train (D/t.csv:2)" in err


@pytest.mark.parametrize("split", ["train", "val"])
def test_hash_of_a_name_does_not_move_with_the_folder(tmp_path, split):
    """The same list read by relative, absolute and backslashed paths has the same splits."""
    names = [f"x/{i}.png" for i in range(30)]
    fill(tmp_path, None, " ".join(names))
    found = []
    for style in ("{}", f"{tmp_path}/{{}}", "x\\{}"):
        written = [style.format(n.removeprefix("x/") if "\\" in style else n) for n in names]
        (tmp_path / "t.csv").write_text("path,labels\n" + "".join(f"{n},x\n" for n in written))
        found.append(data.CSVDataset(tmp_path / "t.csv", split).names)
    assert found[0] == found[1] == found[2] and 0 < len(found[0]) < 30


def test_formats_are_those_that_pillow_opens_as_pictures():
    known = layouts.extensions()
    assert {".jpg", ".jpeg", ".jfif", ".png", ".tif", ".webp", ".ppm", ".gif", ".bmp"} <= set(known)
    assert not {".eps", ".mpg", ".h5", ".pdf", ".heic", ".csv"} & set(known)


@pytest.mark.parametrize("cell", [
    "['\\x1b[2Jx']", '["\\u001b[2Jx"]', '["\\ud800x"]', "['a\\x00']", "['a\\rb']",
    '["a\\u2028b"]', "['" + "x" * 1001 + "']",
])  # fmt: skip
def test_names_that_cannot_be_printed_are_refused(tmp_path, capsys, cell):
    """Lists in cells spell characters that the table itself must not hold."""
    quoted = cell.replace('"', '""')
    fill(tmp_path, f'path,labels\na.png,"{quoted}"\nb.png,dog\n', "a.png b.png")
    code, _, err = checked(tmp_path, "D/t.csv", capsys)
    assert code == 3 and "D/t.csv:2: " in err and "is no list of labels" in err
    assert err[:-1].isprintable()


def test_a_class_folder_that_cannot_be_printed_is_refused(tmp_path, capsys):
    fill(tmp_path, None, "p/dog/1.png p/dog/2.png p/\x1b[2Jcat/1.png p/\x1b[2Jcat/2.png")
    code, out, err = checked(tmp_path, "D/p", capsys)
    assert code == 3 and "no class can be called '\\x1b[2Jcat' – rename it" in err
    assert "\x1b" not in "".join(out) + err


def test_a_cell_without_end_is_refused_at_once(tmp_path, capsys):
    """Quotation marks that are not closed would be looked for from each of them on."""
    cell = "['" + "\\'" * 60_000 + "']"
    fill(tmp_path, f"path,labels\na.png,{cell}\n", "a.png")
    code, _, err = checked(tmp_path, "D/t.csv", capsys)
    assert code == 3 and "D/t.csv:2: a cell of more than 10,000 characters" in err
    assert len(err) < 200


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize(
    "name", ["classes.txt", "t.csv", "tree/list/train.txt", "tree/videoset.csv"]
)
@pytest.mark.parametrize("kind", ["pipe", "circle", "nowhere"])
def test_what_cannot_be_read_is_neither_waited_for_nor_passed_over(tmp_path, capsys, name, kind):
    """A pipe that nobody writes to, a link to itself, a link to what is gone."""
    fill(tmp_path, "path,labels\na.png,dog\n", "a.png tree/pngs320H/v/1.png")
    (tmp_path / "tree/Annotations").mkdir()
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(file if kind == "circle" else tmp_path / "gone")
    code, _, err = checked(tmp_path, "D/tree" if "tree" in name else "D/t.csv", capsys)
    says = {"pipe": "is a pipe or a device", "circle": "Too many levels", "nowhere": "No such file"}
    assert code == 3 and f"D/{name}: " in err
    if kind == "pipe" or name == "classes.txt":
        assert says[kind] in err
