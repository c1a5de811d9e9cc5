//+------------------------------------------------------------------+
//| Sample bridge: holds in MetaTrader 5 the target of target.csv.   |
//| `act --out` writes it into MQL5/Files/swt or Common/Files/swt.   |
//| The same reader in Python: host/live/bridge.py; tests run both.  |
//+------------------------------------------------------------------+
#include <Trade/Trade.mqh>

input string InpFolder      = "swt";     // folder below Files
input bool   InpCommon      = false;     // true: below Files of the common data folder
input string InpSwtSymbol   = "EURUSD";  // symbol in target.csv; the chart's symbol is traded
input string InpModel       = "";        // accept this model only (16 digits); empty = any
input double InpLots        = 0.10;      // lots at a target of 1
input double InpMaxTarget   = 1.0;       // refuse a larger |target|
input int    InpSilentMin   = 180;       // close after so many minutes with quotes and no valid row; 0 = never
input long   InpMagic       = 20240229;

#define TARGET_HEADER   "seq,decided_utc,bar_close_utc,valid_until_utc,symbol,target,reason,model,crc32"
#define POSITION_HEADER "seq,utc,symbol,position,crc32"
#define MAX_AHEAD_S     5                // a decision may lie so far in the future

CTrade   trade;
long     g_seq = 0;                      // last row accepted
double   g_target = 0;                   // its level
datetime g_until = 0, g_quote = 0;       // end of its validity; the last quote
int      g_silent = 0;                   // seconds with quotes and no valid row
bool     g_done = true;                  // the level has been reached
string   g_logged = "nothing";          // last refusal in the log

int OnInit() { trade.SetExpertMagicNumber(InpMagic); return EventSetTimer(1) ? INIT_SUCCEEDED : INIT_FAILED; }
void OnDeinit(const int reason) { EventKillTimer(); }
void OnTimer()
  {
   string why = ReadTarget();
   if(why != g_logged && why != "repeated") { g_logged = why; Print("swt: ", why == "" ? "row accepted" : why); }
   if(TimeCurrent() != g_quote) { g_quote = TimeCurrent(); g_silent++; }
   if(InpSilentMin > 0 && g_silent > InpSilentMin * 60) MoveTo(0);
   else if(!g_done && TimeGMT() < g_until) g_done = MoveTo(TargetLots());
   Report();
  }

// Accept a new row: "", or why it is refused.
string ReadTarget()
  {
   uchar bytes[];
   int shared = FILE_SHARE_READ | FILE_SHARE_WRITE | (InpCommon ? FILE_COMMON : 0);
   int file = FileOpen(InpFolder + "\\target.csv", FILE_READ | FILE_BIN | shared);
   if(file == INVALID_HANDLE) return "unreadable";
   uint size = FileReadArray(file, bytes, 0, 4097);
   FileClose(file);
   string text = CharArrayToString(bytes, 0, (int)size, CP_UTF8);
   string lines[], f[];
   if(size > 4096 || (uint)StringLen(text) != size) return "torn";      // too long, or not ASCII
   StringReplace(text, "\r\n", "\n");
   if(StringSplit(text, '\n', lines) < 2 || StringSplit(lines[1], ',', f) != 9) return "torn";
   if(text != TARGET_HEADER + "\n" + lines[1] + "\n") return "torn";
   string row = StringSubstr(lines[1], 0, StringLen(lines[1]) - StringLen(f[8]) - 1);
   if(Crc(row) != f[8]) return "bad crc";
   long seq = StringToInteger(f[0]);
   double target = StringToDouble(f[5]);
   datetime decided = Stamp(f[1]), closed = Stamp(f[2]), until = Stamp(f[3]), now = TimeGMT();
   string stamps = Utc(decided) + "," + Utc(closed) + "," + Utc(until);
   string read = StringFormat("%I64d,%s,%s,%.4f,%s,%s", seq, stamps, f[4], target, f[6], f[7]);
   if(read != row) return "torn";                                       // "nan" may parse as 0, which means flat
   if(StringFind(f[6], "dry-run") == 0) return "dry-run";
   if(f[4] != InpSwtSymbol) return "symbol " + f[4];
   if(InpModel != "" && f[7] != InpModel) return "model " + f[7];
   if(seq <= g_seq) return "repeated";
   if(now >= until) return "expired";
   if(decided > now + MAX_AHEAD_S || closed > decided + MAX_AHEAD_S) return "from the future";
   if(!MathIsValidNumber(target) || MathAbs(target) > InpMaxTarget) return "above the maximum";
   g_seq = seq; g_target = target; g_until = until; g_silent = 0; g_done = false;
   return "";
  }

datetime Stamp(string text)              // 2024-05-15T12:00:00Z
  {
   StringReplace(text, "-", "."); StringReplace(text, "T", " "); StringReplace(text, "Z", "");
   return StringToTime(text);
  }

string Utc(const datetime time)          // the inverse of Stamp
  {
   string text = TimeToString(time, TIME_DATE | TIME_SECONDS);
   StringReplace(text, ".", "-"); StringReplace(text, " ", "T");
   return text + "Z";
  }

string Crc(const string text)
  {
   uchar b[];
   int n = StringToCharArray(text, b, 0, StringLen(text), CP_UTF8);
   uint crc = 0xFFFFFFFF;
   for(int i = 0; i < n; i++)
     {
      crc ^= b[i];
      for(int k = 0; k < 8; k++) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0xEDB88320 : crc >> 1;
     }
   return StringFormat("%08x", ~crc);
  }

// Select position i; true if this bridge opened it.
bool Own(const int i)
  {
   if(PositionGetTicket(i) == 0 || PositionGetString(POSITION_SYMBOL) != _Symbol) return false;
   return PositionGetInteger(POSITION_MAGIC) == InpMagic;
  }

// Signed lots of this bridge's positions.
double HeldLots()
  {
   double lots = 0;
   for(int i = PositionsTotal() - 1; i >= 0; i--) if(Own(i))
      lots += PositionGetDouble(POSITION_VOLUME) * (PositionGetInteger(POSITION_TYPE) == POSITION_TYPE_BUY ? 1 : -1);
   return NormalizeDouble(lots, 8);
  }

// Signed lots of the target, in whole steps; 0 below the smallest volume.
double TargetLots()
  {
   double step = SymbolInfoDouble(_Symbol, SYMBOL_VOLUME_STEP), max_lots = SymbolInfoDouble(_Symbol, SYMBOL_VOLUME_MAX);
   double lots = MathFloor(MathMin(MathAbs(g_target) * InpLots, max_lots) / step + 1e-9) * step;
   if(lots < SymbolInfoDouble(_Symbol, SYMBOL_VOLUME_MIN) - 1e-8) lots = 0;
   return NormalizeDouble(g_target < 0 ? -lots : lots, 8);
  }

// One order towards a position; true once it is held.  What one order cannot reach begins by closing the position.
bool MoveTo(const double wanted)
  {
   double held = HeldLots(), change = NormalizeDouble(MathAbs(wanted - held), 8);
   if(change < 1e-8) return true;
   bool too_little = change < SymbolInfoDouble(_Symbol, SYMBOL_VOLUME_MIN) - 1e-8;
   if(held * wanted < 0 || MathAbs(wanted) < MathAbs(held) || too_little)
      for(int i = PositionsTotal() - 1; i >= 0; i--) { if(Own(i)) trade.PositionClose(PositionGetTicket(i)); }
   else if(wanted > held) trade.Buy(change, _Symbol);
   else trade.Sell(change, _Symbol);
   return false;                         // the rest follows a second later, after this deal
  }

// Write the held position, in units of the target, for swt to compare.
void Report()
  {
   double held = HeldLots(), position = MathAbs(held - TargetLots()) < 1e-8 ? g_target : held / InpLots;
   string row = StringFormat("%I64d,%s,%s,%.4f", g_seq, Utc(TimeGMT()), InpSwtSymbol, position);
   string path = InpFolder + "\\position.csv", temporary = path + ".tmp";
   int common = InpCommon ? FILE_COMMON : 0, file = FileOpen(temporary, FILE_WRITE | FILE_BIN | FILE_ANSI | common);
   if(file == INVALID_HANDLE) return;
   FileWriteString(file, POSITION_HEADER + "\n" + row + "," + Crc(row) + "\n");
   FileClose(file);
   FileMove(temporary, common, path, common | FILE_REWRITE);
  }
