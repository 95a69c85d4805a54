// The main() of every test program, compiled once. Catch2 3 brings its own, so this one is for version 2.
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
