// What host/swt_bridge.mq5 asks of MetaTrader 5, in C++17, after the MQL5 reference.  Belongs to the tests.
//
// Where the reference leaves open what a terminal does with text that is no number, no stamp or no UTF-8, this one
// does the least helpful thing: it reads *something*, so that a bridge which does not look twice is found out.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

using namespace std::string_literals;
using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using datetime = long;          // seconds since 1970
using string = std::u16string;  // two bytes a character

template <class T>
struct Array : std::vector<T> {  // an index out of range ends the program, as in the terminal
  T& operator[](size_t i) { return this->at(i); }
};

struct Position {
  ulong ticket;
  string symbol;
  long magic;
  double lots;  // signed
};

struct File {
  std::fstream stream;
  bool ansi;  // one byte a character, not two
};

struct Terminal {
  std::filesystem::path data;  // holds Files and Common
  datetime gmt = 0, quote = 0;
  double volume_step = 0.01, volume_min = 0.01, volume_max = 100;
  bool hedging = true, answering = true;  // a broker that does not answer fills nothing
  std::vector<Position> positions;
  Position selected{};
  std::map<std::string, std::string> inputs;
  std::string journal;  // what the expert and the broker said
  std::map<int, File> files;  // the open ones, by handle
  int last_file = 0;
  ulong last_ticket = 0;
};
inline Terminal terminal;
inline const string _Symbol = u"EURUSD";

// ---- text ---------------------------------------------------------------------------------------

inline std::string narrow(const string& text) {  // UTF-8; halves of surrogate pairs one by one
  std::string bytes;
  for (char16_t c : text) {
    if (c < 0x80) bytes += char(c);
    if (c >= 0x80 && c < 0x800) bytes += {char(0xC0 | c >> 6), char(0x80 | (c & 63))};
    if (c >= 0x800) bytes += {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 63)), char(0x80 | (c & 63))};
  }
  return bytes;
}

inline string widen(const std::string& bytes) {  // a byte that is no UTF-8 becomes the replacement character
  string text;
  for (size_t i = 0; i < bytes.size();) {
    uchar first = bytes[i++];
    int more = first < 0xC0 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
    uint code = more == 0 ? first : first & (0x3F >> more);
    bool whole = (first < 0x80 || first >= 0xC0) && first < 0xF8 && i + more <= bytes.size();
    for (int k = 0; whole && k < more; k++) {
      whole = (bytes[i + k] & 0xC0) == 0x80;
      code = code << 6 | (bytes[i + k] & 0x3F);
    }
    if (whole) i += more;
    if (whole && code >= 0x10000) text += char16_t(0xD7C0 + (code >> 10));
    text += !whole ? char16_t(0xFFFD) : code < 0x10000 ? char16_t(code) : char16_t(0xDC00 | (code & 0x3FF));
  }
  return text;
}

inline int StringLen(const string& text) { return int(text.size()); }

inline int StringFind(const string& text, const string& part) {
  size_t at = text.find(part);
  return at == string::npos ? -1 : int(at);
}

inline string StringSubstr(const string& text, int start, int length) {  // a negative length: to the end
  return text.substr(start, length < 0 ? string::npos : size_t(length));
}

inline int StringReplace(string& text, const string& from, const string& to) {
  int count = 0;
  for (size_t at = 0; (at = text.find(from, at)) != string::npos; at += to.size(), count++)
    text.replace(at, from.size(), to);
  return count;
}

inline int StringSplit(const string& text, ushort separator, Array<string>& parts) {
  parts.clear();
  if (text.empty()) return 0;
  size_t start = 0, stop;
  for (; (stop = text.find(char16_t(separator), start)) != string::npos; start = stop + 1)
    parts.push_back(text.substr(start, stop - start));
  parts.push_back(text.substr(start));
  return int(parts.size());
}

// Bytes up to `count`, or to the end; a zero ends a string.
constexpr uint CP_UTF8 = 65001;
inline string CharArrayToString(const Array<uchar>& bytes, int start, int count, uint) {
  size_t stop = count < 0 ? bytes.size() : std::min(bytes.size(), size_t(start) + count);
  std::string part(bytes.begin() + start, bytes.begin() + stop);
  return widen(part.substr(0, part.find('\0')));
}

// Copies `count` bytes; without a count all of them and the zero at the end.  The array grows, and never shrinks.
inline int StringToCharArray(const string& text, Array<uchar>& bytes, int start, int count, uint) {
  std::string part = narrow(text) + '\0';
  if (count >= 0) part.resize(std::min(part.size(), size_t(count)));
  bytes.resize(std::max(bytes.size(), start + part.size()));
  std::copy(part.begin(), part.end(), bytes.begin() + start);
  return int(part.size());
}

// ---- numbers and times --------------------------------------------------------------------------

inline long StringToInteger(const string& text) { return std::strtol(narrow(text).c_str(), nullptr, 10); }

inline double StringToDouble(const string& text) {  // the number it begins with; 0 without one, so for "nan"
  std::string digits = narrow(text);
  return std::strtod(digits.substr(0, digits.find_first_not_of("+-.0123456789eE")).c_str(), nullptr);
}

inline datetime StringToTime(const string& text) {  // what is missing is today's, and 31 February is in March
  tm time{};
  gmtime_r(&terminal.gmt, &time);
  int year = time.tm_year + 1900, month = time.tm_mon + 1;
  time.tm_hour = time.tm_min = time.tm_sec = 0;
  std::sscanf(narrow(text).c_str(), "%d.%d.%d %d:%d:%d", &year, &month, &time.tm_mday, &time.tm_hour, &time.tm_min,
              &time.tm_sec);
  time.tm_year = year - 1900;
  time.tm_mon = month - 1;
  return timegm(&time);
}

constexpr int TIME_DATE = 1, TIME_SECONDS = 4;
inline string TimeToString(datetime moment, int flags) {
  tm time{};
  gmtime_r(&moment, &time);
  char date[32], seconds[32];
  std::strftime(date, sizeof date, (flags & TIME_DATE) != 0 ? "%Y.%m.%d " : "", &time);
  std::strftime(seconds, sizeof seconds, (flags & TIME_SECONDS) != 0 ? "%H:%M:%S" : "", &time);
  return widen(date + std::string(seconds));
}

inline void formatted(std::string& out, const std::string& rest) { out += rest; }

template <class T, class... More>
void formatted(std::string& out, const std::string& format, const T& value, const More&... more) {
  size_t from = format.find('%'), to = format.find_first_of("dfsux", from) + 1;
  std::string spec = format.substr(from, to - from);
  if (size_t at = spec.find("I64"); at != std::string::npos) spec.replace(at, 3, "ll");
  out += format.substr(0, from);
  if constexpr (std::is_same_v<T, string>) {
    out += narrow(value);
  } else {
    char text[400];
    std::snprintf(text, sizeof text, spec.c_str(), value);
    out += text;
  }
  formatted(out, format.substr(to), more...);
}

template <class... Values>
string StringFormat(const string& format, const Values&... values) {
  std::string out;
  formatted(out, narrow(format), values...);
  return widen(out);
}

inline double MathAbs(double x) { return std::fabs(x); }
inline double MathFloor(double x) { return std::floor(x); }
inline double MathMin(double x, double y) { return std::min(x, y); }
inline bool MathIsValidNumber(double x) { return std::isfinite(x); }
inline double NormalizeDouble(double x, int digits) {
  return std::round(x * std::pow(10, digits)) / std::pow(10, digits);
}

// ---- the expert and its clocks ------------------------------------------------------------------

enum ENUM_INIT_RETCODE { INIT_SUCCEEDED, INIT_FAILED };
inline bool EventSetTimer(int) { return true; }
inline void EventKillTimer() {}
inline datetime TimeGMT() { return terminal.gmt; }
inline datetime TimeCurrent() { return terminal.quote; }  // of the last quote, by the server's clock

template <class... Texts>
void Print(const Texts&... texts) {
  ((terminal.journal += narrow(texts)), ...);
  terminal.journal += ';';
}

template <class T>
T input(const char* name, T otherwise) {  // the setting of that name, if there is one
  auto given = terminal.inputs.find(name);
  if (given == terminal.inputs.end()) return otherwise;
  if constexpr (std::is_same_v<T, string>) {
    return widen(given->second);
  } else {
    std::istringstream(given->second) >> otherwise;
    return otherwise;
  }
}

// ---- files below Files or Common ----------------------------------------------------------------

constexpr int INVALID_HANDLE = -1, FILE_READ = 1, FILE_WRITE = 2, FILE_BIN = 4, FILE_ANSI = 32;
constexpr int FILE_SHARE_READ = 128, FILE_SHARE_WRITE = 256, FILE_REWRITE = 512, FILE_COMMON = 4096;

inline std::filesystem::path located(string name, int flags) {
  StringReplace(name, u"\\", u"/");
  return terminal.data / ((flags & FILE_COMMON) != 0 ? "Common" : "Files") / narrow(name);
}

inline int FileOpen(const string& name, int flags) {  // for writing: empties the file, makes its folders
  auto path = located(name, flags);
  bool writes = (flags & FILE_WRITE) != 0;
  if (writes) std::filesystem::create_directories(path.parent_path());
  std::fstream stream(path, std::ios::binary | (writes ? std::ios::out | std::ios::trunc : std::ios::in));
  if (!stream.is_open()) return INVALID_HANDLE;
  terminal.files[++terminal.last_file] = {std::move(stream), (flags & FILE_ANSI) != 0};
  return terminal.last_file;
}

inline void FileClose(int file) { terminal.files.erase(file); }

inline uint FileReadArray(int file, Array<uchar>& bytes, int start, int count) {
  std::string part(count, '\0');
  auto& stream = terminal.files.at(file).stream;
  part.resize(stream.read(part.data(), count).gcount());
  bytes.resize(std::max(bytes.size(), start + part.size()));
  std::copy(part.begin(), part.end(), bytes.begin() + start);
  return uint(part.size());
}

inline uint FileWriteString(int file, const string& text) {
  auto& [stream, ansi] = terminal.files.at(file);
  std::string bytes = ansi ? narrow(text) : std::string(reinterpret_cast<const char*>(text.data()), 2 * text.size());
  stream << bytes;
  return uint(bytes.size());
}

inline bool FileMove(const string& from, int from_flags, const string& to, int to_flags) {
  auto target = located(to, to_flags);
  if (std::filesystem::exists(target) && (to_flags & FILE_REWRITE) == 0) return false;
  std::error_code failed;
  std::filesystem::rename(located(from, from_flags), target, failed);
  return !failed;
}

// ---- the account --------------------------------------------------------------------------------

enum ENUM_SYMBOL_INFO_DOUBLE { SYMBOL_VOLUME_MIN, SYMBOL_VOLUME_MAX, SYMBOL_VOLUME_STEP };
enum ENUM_POSITION_PROPERTY_INTEGER { POSITION_TYPE, POSITION_MAGIC };
enum ENUM_POSITION_PROPERTY_DOUBLE { POSITION_VOLUME };
enum ENUM_POSITION_PROPERTY_STRING { POSITION_SYMBOL };
enum ENUM_POSITION_TYPE { POSITION_TYPE_BUY, POSITION_TYPE_SELL };

inline double SymbolInfoDouble(const string&, ENUM_SYMBOL_INFO_DOUBLE property) {
  if (property == SYMBOL_VOLUME_STEP) return terminal.volume_step;
  return property == SYMBOL_VOLUME_MIN ? terminal.volume_min : terminal.volume_max;
}

inline int PositionsTotal() { return int(terminal.positions.size()); }
inline ulong PositionGetTicket(int i) {  // selects it for the functions below
  if (i < 0 || i >= PositionsTotal()) return 0;
  terminal.selected = terminal.positions[i];
  return terminal.selected.ticket;
}
inline string PositionGetString(ENUM_POSITION_PROPERTY_STRING) { return terminal.selected.symbol; }
inline double PositionGetDouble(ENUM_POSITION_PROPERTY_DOUBLE) { return std::fabs(terminal.selected.lots); }
inline long PositionGetInteger(ENUM_POSITION_PROPERTY_INTEGER property) {
  if (property == POSITION_MAGIC) return terminal.selected.magic;
  return terminal.selected.lots > 0 ? POSITION_TYPE_BUY : POSITION_TYPE_SELL;
}
