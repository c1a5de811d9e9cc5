// Runs the expert on commands from stdin, one a line, and answers with a line where there is something to say.
#include <iostream>
#include <memory>
#include <utility>

#include "Trade/Trade.mqh"

struct Expert {  // inside of a class functions know the ones below them, as in MQL5
#include "expert.inc"
};

int main() {
  std::unique_ptr<Expert> expert;
  std::string line, command, name;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    words >> command;
    if (command == "terminal") {  // a new one: data folder, what the broker allows
      terminal = Terminal{};
      words >> terminal.data >> terminal.volume_step >> terminal.volume_min >> terminal.volume_max >> terminal.hedging;
    } else if (command == "broker") {
      words >> terminal.answering;
    } else if (command == "input") {
      words >> name >> terminal.inputs[name];
    } else if (command == "attach") {
      expert = std::make_unique<Expert>();
      std::cout << expert->OnInit() << std::endl;
    } else if (command == "hold") {  // a position of somebody else
      Position other{++terminal.last_ticket, {}, 0, 0};
      words >> name >> other.magic >> other.lots;
      other.symbol = widen(name);
      terminal.positions.push_back(other);
    } else if (command == "timer") {  // TimeGMT, TimeCurrent
      words >> terminal.gmt >> terminal.quote;
      expert->OnTimer();
      std::cout << std::exchange(terminal.journal, "");
      for (const Position& p : terminal.positions)
        std::cout << '\t' << narrow(p.symbol) << ' ' << p.magic << ' ' << p.lots;
      std::cout << std::endl;
    }
  }
}
