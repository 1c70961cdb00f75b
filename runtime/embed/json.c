/* JSON (RFC 8259), as manifests and plans have it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { MAX_DEPTH = 32, CHUNK = 4096 };

typedef struct chunk {
  struct chunk *next;
  json values[CHUNK];
} chunk;

struct json_document {
  char *text, *at, *end;
  chunk *chunks;
  int used;
  json *root;
  const char *problem;
};

static json *parse_value(json_document *d, int depth);

static json *fail(json_document *d, const char *problem) {
  if (!d->problem) d->problem = problem;
  return NULL;
}

static json *new_value(json_document *d, json_kind kind) {
  if (!d->chunks || d->used == CHUNK) {
    chunk *more = calloc(1, sizeof *more);
    if (!more) return fail(d, "no memory is left");
    more->next = d->chunks;
    d->chunks = more;
    d->used = 0;
  }
  json *value = &d->chunks->values[d->used++];
  value->kind = kind;
  return value;
}

static int skip(json_document *d) {
  while (d->at < d->end && strchr(" \t\r\n", *d->at)) ++d->at;
  return d->at < d->end ? *d->at : 0;
}

static unsigned hex(const char *at) {
  unsigned code = 0;
  for (int i = 0; i < 4; ++i) {
    char c = at[i];
    code = code * 16 + (unsigned)(c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : 0);
  }
  return code;
}

/* A character in UTF-8; surrogates, which no name has, stand as they are. */
static char *write_character(char *to, unsigned code) {
  if (code < 0x80) {
    *to++ = (char)code;
  } else if (code < 0x800) {
    *to++ = (char)(0xC0 | code >> 6);
    *to++ = (char)(0x80 | (code & 0x3F));
  } else {
    *to++ = (char)(0xE0 | code >> 12);
    *to++ = (char)(0x80 | (code >> 6 & 0x3F));
    *to++ = (char)(0x80 | (code & 0x3F));
  }
  return to;
}

/* A string, rewritten where it stands: it never gets longer. */
static const char *parse_string(json_document *d) {
  static const char marks[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
  char *start = ++d->at, *to = start;
  while (d->at < d->end && *d->at != '"') {
    if (*d->at != '\\') {
      *to++ = *d->at++;
      continue;
    }
    const char *mark = d->at + 1 < d->end ? strchr(marks, d->at[1]) : NULL;
    if (mark && *mark) {
      *to++ = meant[mark - marks];
      d->at += 2;
    } else if (d->at + 6 <= d->end && d->at[1] == 'u') {
      to = write_character(to, hex(d->at + 2));
      d->at += 6;
    } else {
      return fail(d, "a string has an unknown escape"), NULL;
    }
  }
  if (d->at >= d->end) return fail(d, "a string does not end"), NULL;
  ++d->at;
  *to = 0;
  return start;
}

static json *parse_members(json_document *d, json_kind kind, int close, int depth) {
  json *value = new_value(d, kind), **last = value ? &value->first : NULL;
  if (!value) return NULL;
  ++d->at;
  if (skip(d) == close) return ++d->at, value;
  for (;;) {
    const char *key = NULL;
    if (kind == JSON_OBJECT) {
      if (skip(d) != '"' || !(key = parse_string(d))) return fail(d, "a key is no string");
      if (skip(d) != ':') return fail(d, "a key has no value");
      ++d->at;
    }
    json *member = parse_value(d, depth + 1);
    if (!member) return NULL;
    member->key = key;
    *last = member;
    last = &member->next;
    int mark = skip(d);
    if (mark != ',' && mark != close) return fail(d, "a list or an object does not end");
    ++d->at;
    if (mark == close) return value;
  }
}

static json *parse_word(json_document *d) {
  static const struct {
    const char *word;
    json_kind kind;
    double number;
  } words[] = {{"null", JSON_NULL, 0}, {"true", JSON_BOOL, 1}, {"false", JSON_BOOL, 0}};
  for (int i = 0; i < 3; ++i) {
    size_t length = strlen(words[i].word);
    if ((size_t)(d->end - d->at) < length || memcmp(d->at, words[i].word, length)) continue;
    json *value = new_value(d, words[i].kind);
    if (value) value->number = words[i].number;
    d->at += length;
    return value;
  }
  char *end;
  double number = strtod(d->at, &end); /* the text ends with a 0 */
  if (end == d->at) return fail(d, "a value is unknown");
  json *value = new_value(d, JSON_NUMBER);
  if (value) value->number = number;
  d->at = end;
  return value;
}

static json *parse_value(json_document *d, int depth) {
  if (depth > MAX_DEPTH) return fail(d, "it is nested too deeply");
  int mark = skip(d);
  if (mark == '{') return parse_members(d, JSON_OBJECT, '}', depth);
  if (mark == '[') return parse_members(d, JSON_LIST, ']', depth);
  if (mark != '"') return parse_word(d);
  json *value = new_value(d, JSON_STRING);
  return value && (value->text = parse_string(d)) ? value : NULL;
}

json_document *json_parse(const char *text, size_t length, char *message) {
  json_document *d = calloc(1, sizeof *d);
  if (!d || !(d->text = malloc(length + 1))) {
    FAIL(message, "no memory is left");
    free(d);
    return NULL;
  }
  memcpy(d->text, text, length);
  d->text[length] = 0;
  d->at = d->text;
  d->end = d->text + length;
  d->root = parse_value(d, 0);
  if (d->root && skip(d)) d->root = fail(d, "something follows it");
  if (d->root) return d;
  FAIL(message, "is no JSON: %s, at byte %zu", d->problem, (size_t)(d->at - d->text));
  json_free(d);
  return NULL;
}

void json_free(json_document *d) {
  if (!d) return;
  for (chunk *each = d->chunks, *next; each; each = next) {
    next = each->next;
    free(each);
  }
  free(d->text);
  free(d);
}

const json *json_root(const json_document *d) { return d->root; }

const json *json_get(const json *object, const char *key) {
  if (!object || object->kind != JSON_OBJECT) return NULL;
  for (const json *member = object->first; member; member = member->next)
    if (!strcmp(member->key, key)) return member;
  return NULL;
}

const char *json_text(const json *object, const char *key) {
  const json *member = json_get(object, key);
  return member && member->kind == JSON_STRING ? member->text : "";
}

int64_t json_number(const json *object, const char *key, int64_t otherwise) {
  const json *member = json_get(object, key);
  return member && member->kind == JSON_NUMBER ? (int64_t)member->number : otherwise;
}
