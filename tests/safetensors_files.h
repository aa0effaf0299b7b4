// tests/safetensors_files.h - for safetensors_test.c: headers that have to be read, and headers that have to be
// refused, each with what the line of the refusal says.
#ifndef SAFETENSORS_FILES_H
#define SAFETENSORS_FILES_H

#include <stddef.h>

// -- What is read ------------------------------------------------------------------------------------

typedef struct {
  const char *what, *header;
  size_t data_bytes;
} sound_file;

#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"
#define B "\"b\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[8,16]}"

static const sound_file sound_files[] = {
    {"two tensors", "{" A "," B "}", 16},
    {"in another order than their data", "{" B "," A "}", 16},
    {"metadata in front", "{\"__metadata__\":{\"k\":\"v\"}," A "," B "}", 16},
    {"metadata between", "{" A ",\"__metadata__\":{\"k\":\"v\"}," B "}", 16},
    {"metadata at the end", "{" A "," B ",\"__metadata__\":{\"k\":\"v\",\"l\":\"\"}}", 16},
    {"empty metadata", "{\"__metadata__\":{}," A "}", 8},
    {"spaces, tabs and line ends everywhere",
     " {\r\n\t\"a\" : { \"dtype\" : \"F32\" , \"shape\" : [ 2 ] , \"data_offsets\" : [ 0 , 8 ] } } "
     "\n  ",
     8},
    {"keys in another order", "{\"a\":{\"data_offsets\":[0,8],\"shape\":[2],\"dtype\":\"F32\"}}",
     8},
    {"no tensors", "{}", 0},
    {"a tensor without elements",
     "{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[3,0],\"data_offsets\":[8,8]}}", 8},
    {"tensors without elements at the beginning",
     "{\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}," A
     ",\"c\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
     8},
    {"escapes in strings", "{\"__metadata__\":{\"a \\\"k\\\"\":\"\\\\ \\/\"}," A "}", 8},
    {"eight dimensions",
     "{\"a\":{\"dtype\":\"BF16\",\"shape\":[1,1,2,1,1,1,1,2],\"data_offsets\":[0,8]}}", 8},
};

// -- What is refused -----------------------------------------------------------------------------------

typedef struct {
  const char *what, *header;
  size_t data_bytes;
  const char *phrase;
} bad_file;

// A tensor "a" with 8 bytes of data of which one thing is not as it should be.
#define DTYPE(text) "{\"a\":{\"dtype\":" text ",\"shape\":[2],\"data_offsets\":[0,8]}}", 8
#define SHAPE(text) "{\"a\":{\"dtype\":\"F32\",\"shape\":" text ",\"data_offsets\":[0,8]}}", 8
#define OFFSETS(text) "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" text "}}", 8
#define TENSOR(text) "{\"a\":" text "}", 8
#define SECOND(from, to)                                                                           \
  "{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[" from "," to "]}}"

static const bad_file bad_files[] = {
    {"no header", "", 0, "expected '{'"},
    {"not JSON", "PK\003\004 a zip file, as torch.save writes", 8, "expected '{'"},
    {"an array", "[" A "]", 8, "expected '{'"},
    {"cut off after '{'", "{", 0, "a string"},
    {"cut off in a name", "{\"conv1.wei", 0, "the end of a string"},
    {"a comma too many", "{" A ",}", 8, "a string"},
    {"a comma missing", "{" A " " B "}", 16, "'}'"},
    {"a colon missing", "{\"a\" {}}", 8, "':'"},
    {"text after the end", "{" A "} {}", 8, "nothing after"},
    {"a bare name", "{a:1}", 8, "a string"},
    {"a number in a tensor's place", TENSOR("1"), "a tensor's description"},
    {"null in a tensor's place", TENSOR("null"), "a tensor's description"},
    {"an empty description", TENSOR("{}"), "a string"},
    {"no dtype", TENSOR("{\"shape\":[2],\"data_offsets\":[0,8]}"), "a tensor's dtype, shape and"},
    {"no shape", TENSOR("{\"dtype\":\"F32\",\"data_offsets\":[0,8]}"),
     "a tensor's dtype, shape and"},
    {"no offsets", TENSOR("{\"dtype\":\"F32\",\"shape\":[2]}"), "a tensor's dtype, shape and"},
    {"a key too many", TENSOR("{\"dtype\":\"F32\",\"strides\":[1]}"), "once each"},
    {"a key twice", TENSOR("{\"shape\":[2],\"shape\":[2]}"), "once each"},
    {"a long key", TENSOR("{\"a key of the description\":[2]}"), "once each"},
    {"an unknown dtype", DTYPE("\"F33\""), "a known dtype"},
    {"an empty dtype", DTYPE("\"\""), "a known dtype"},
    {"a long dtype", DTYPE("\"F32F32F32\""), "a known dtype"},
    {"a dtype without end, then another", DTYPE("\"F32F32F3,\"dtype\":\"F32\""),
     "a tensor's dtype, shape and"},
    {"three numbers of six bits",
     "{\"a\":{\"dtype\":\"F6_E2M3\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2,
     "agree with dtype and shape"},
    {"a number as dtype", DTYPE("32"), "a string"},
    {"a string as shape", SHAPE("\"2\""), "an array"},
    {"a negative dimension", SHAPE("[-2]"), "not negative"},
    {"a fractional dimension", SHAPE("[2.0]"), "']'"},
    {"a dimension with an exponent", SHAPE("[2e0]"), "']'"},
    {"a dimension in quotes", SHAPE("[\"2\"]"), "a whole number"},
    {"an empty dimension, then another shape", SHAPE("[1,,\"shape\":[2]"), "a whole number"},
    {"a comma too many in a shape", SHAPE("[2,]"), "a whole number"},
    {"a shape without end", SHAPE("[2"), "a whole number"},
    {"a dimension of 2^63", SHAPE("[9223372036854775808]"), "a smaller number"},
    {"a dimension of 2^64 + 2", SHAPE("[18446744073709551618]"), "a smaller number"},
    {"a dimension of 40 digits", SHAPE("[1000000000000000000000000000000000000000]"),
     "a smaller number"},
    {"nine dimensions, the ninth too large", SHAPE("[1,1,1,1,1,1,1,2,2]"),
     "agree with dtype and shape"},
    {"twelve dimensions that are too many for 64 bits",
     SHAPE("[65536,65536,1,1,1,1,1,1,1,1,65536,65536]"), "agree with dtype and shape"},
    {"a shape inside a shape", SHAPE("[[2]]"), "a whole number"},
    {"a shape too small", SHAPE("[1]"), "agree with dtype and shape"},
    {"a shape too large", SHAPE("[2,2]"), "agree with dtype and shape"},
    {"a dtype too large", DTYPE("\"F64\""), "agree with dtype and shape"},
    {"a shape whose bytes are 2^64 + 8", SHAPE("[2147483649,2147483648,1]"),
     "agree with dtype and shape"},
    {"a shape whose bytes are 8 modulo 2^64", SHAPE("[4611686018427387906]"),
     "agree with dtype and shape"},
    {"a shape whose bytes are 0 modulo 2^64",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
     "agree with dtype and shape"},
    {"offsets in quotes", OFFSETS("[\"0\",\"8\"]"), "a whole number"},
    {"one offset", OFFSETS("[8]"), "two numbers in data_offsets"},
    {"no offset", OFFSETS("[]"), "two numbers in data_offsets"},
    {"three offsets", OFFSETS("[0,8,8]"), "two numbers in data_offsets"},
    {"offsets twice",
     TENSOR("{\"data_offsets\":[0,8],\"data_offsets\":[0,8],\"dtype\":\"F32\",\"shape\":[2]}"),
     "once each"},
    {"a negative offset", OFFSETS("[-8,0]"), "not negative"},
    {"a fractional offset", OFFSETS("[0,8.5]"), "']'"},
    {"begin behind end", OFFSETS("[8,0]"), "inside the file"},
    {"an end beyond the file", OFFSETS("[0,9]"), "inside the file"},
    {"begin and end beyond the file", OFFSETS("[8,16]"), "inside the file"},
    {"an end of 2^62", OFFSETS("[0,4611686018427387904]"), "inside the file"},
    {"data behind the last tensor", "{" A "}", 9, "overlap, leave gaps, or end"},
    {"data without a tensor", "{}", 1, "overlap, leave gaps, or end"},
    {"the same data twice", SECOND("0", "8"), 8, "overlap, leave gaps, or end"},
    {"overlapping tensors", SECOND("4", "12"), 12, "overlap, leave gaps, or end"},
    {"a gap between tensors", SECOND("12", "20"), 20, "overlap, leave gaps, or end"},
    {"an overlap and as large a gap", SECOND("4", "12"), 16, "overlap, leave gaps, or end"},
    {"a gap and as large an overlap",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}",
     16, "overlap, leave gaps, or end"},
    {"a gap in front", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[1,9]}}", 9,
     "overlap, leave gaps, or end"},
    {"a name twice", "{" A ",\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}", 16,
     "each name and key once"},
    {"a name twice, once by its letters' numbers",
     "{" A ",\"\\u0061\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}", 16,
     "each name and key once"},
    {"a metadata key twice", "{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}," A "}", 8,
     "each name and key once"},
    {"a metadata key first and last",
     "{\"__metadata__\":{\"k\":\"1\",\"a\":\"\",\"z\":\"\",\"k\":\"1\"}," A "}", 8,
     "each name and key once"},
    {"the metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}," A "}", 8,
     "__metadata__ once"},
    {"a number as metadata", "{\"__metadata__\":{\"epoch\":1}," A "}", 8, "a string"},
    {"an object as metadata", "{\"__metadata__\":{\"k\":{\"l\":\"m\"}}," A "}", 8, "a string"},
    {"metadata that is not an object", "{\"__metadata__\":\"pt\"," A "}", 8, "the metadata"},
    {"a line end in a name", "{\"a\nb\":{}}", 8, "no control character"},
    {"an escape that JSON does not have", "{\"a\\xb\":{}}", 8, "an escape that JSON has"},
    {"an escape sequence for a terminal", "{\"\033[2J\":{}}", 8, "no control character"},
    {"a letter's number of three digits", "{\"\\u061\":{}}", 8, "four hexadecimal digits"},
    {"a letter's number cut off", "{\"\\u06", 0, "four hexadecimal digits"},
    {"a letter's number with another letter", "{\"\\u006g\":{}}", 8, "four hexadecimal digits"},
    {"the first half of a letter", "{\"\\ud83d\":{}}", 8, "both halves"},
    {"the second half of a letter", "{\"\\ude00\":{}}", 8, "both halves"},
    {"the first half twice", "{\"\\ud83d\\ud83d\":{}}", 8, "both halves"},
    {"the first half and a line end", "{\"\\ud83d\\n\":{}}", 8, "both halves"},
    {"the first half and a cut", "{\"\\ud83d\\u", 0, "both halves"},
    {"a backslash at the end", "{\"a\\", 0, "an escape that JSON has"},
};

#endif
