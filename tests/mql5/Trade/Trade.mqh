// CTrade, and a broker who fills every order of an allowed volume at once.  Belongs to the tests.
#pragma once

#include "../terminal.hpp"

class CTrade {
 public:
  void SetExpertMagicNumber(ulong magic) { magic_ = long(magic); }
  bool Buy(double volume, const string& symbol) { return Deal(symbol, volume, volume); }
  bool Sell(double volume, const string& symbol) { return Deal(symbol, volume, -volume); }

  bool PositionClose(ulong ticket) {
    auto& held = terminal.positions;
    auto closed = std::find_if(held.begin(), held.end(), [&](const Position& p) { return p.ticket == ticket; });
    if (!terminal.answering || closed == held.end()) return Refused();
    held.erase(closed);
    return true;
  }

 private:
  // Hedging accounts open a position a deal, netting ones have a single position a symbol.
  bool Deal(const string& symbol, double volume, double lots) {
    double steps = volume / terminal.volume_step;
    bool whole = std::fabs(steps - std::round(steps)) < 1e-6;
    bool allowed = volume > terminal.volume_min - 1e-9 && volume < terminal.volume_max + 1e-9;
    if (!terminal.answering || !whole || !allowed) return Refused();
    auto& held = terminal.positions;
    auto same = std::find_if(held.begin(), held.end(), [&](const Position& p) { return p.symbol == symbol; });
    if (terminal.hedging || same == held.end())
      held.push_back({++terminal.last_ticket, symbol, magic_, lots});
    else if (std::fabs(same->lots += lots) < 1e-9)
      held.erase(same);
    return true;
  }

  bool Refused() {
    terminal.journal += "order refused;";
    return false;
  }

  long magic_ = 0;
};
