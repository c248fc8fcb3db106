// Boost.JSON's implementation, compiled once here.
#include <boost/json/src.hpp>
