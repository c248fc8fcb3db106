#include "experiment/report.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <boost/property_tree/ptree.hpp>
#include <boost/property_tree/xml_parser.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "base/memory.h"
#include "experiment/report_charts.h"
#include "experiment/report_document.h"
#include "experiment/report_significance.h"
#include "paths.h"

namespace qwen2::report {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

fs::path fixture() {
  return test::source_folder() / "tests/data/experiment";
}

std::string read(const fs::path& file) {
  return *read_text_file(file);
}

// A copy of the fixture that a test may break.
class BrokenCopy : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("qwen2-report-{}", ::getpid());
    fs::remove_all(folder_);
    fs::copy(fixture(), folder_, fs::copy_options::recursive);
  }
  void TearDown() override { fs::remove_all(folder_); }

  void replace(const char* file, const std::string& from, const std::string& to) {
    std::string text = read(folder_ / file);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    write(file, text);
  }
  void write(const char* file, const std::string& text) { std::ofstream(folder_ / file) << text; }

  // Loading fails with one line that holds all of `parts`.
  void expect_error(std::initializer_list<const char*> parts) {
    const auto experiment = load_experiment(folder_);
    ASSERT_FALSE(experiment);
    const std::string& message = experiment.error().message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
    for (const char* part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << message << " does not name " << part;
  }

  fs::path folder_;
};

Metric metric(double mean, double half, Better better, int64_t n = 3) {
  Metric m;
  m.n = n;
  m.mean = mean;
  m.low = n > 1 ? mean - half : kNoValue;
  m.high = n > 1 ? mean + half : kNoValue;
  m.better = better;
  return m;
}

TEST(Significance, IntervalsThatOverlapShowNothing) {
  const Metric a = metric(10, 1, Better::kHigher);
  EXPECT_EQ(separate_intervals(a, metric(11.9, 1, Better::kHigher)), Verdict::kNotShown);
  EXPECT_EQ(separate_intervals(a, metric(12.1, 1, Better::kHigher)), Verdict::kBetter);
  EXPECT_EQ(separate_intervals(a, metric(7.9, 1, Better::kHigher)), Verdict::kWorse);
  EXPECT_EQ(separate_intervals(metric(10, 1, Better::kLower), metric(7.9, 1, Better::kLower)),
            Verdict::kBetter);
  // Last bits of what is the same in every repeat.
  EXPECT_EQ(separate_intervals(metric(10, 0, Better::kLower), metric(10.0005, 0, Better::kLower)),
            Verdict::kNotShown);
  EXPECT_EQ(separate_intervals(metric(10, 0, Better::kLower), metric(10.01, 0, Better::kLower)),
            Verdict::kWorse);
  EXPECT_EQ(separate_intervals(metric(10, 1, Better::kNone), metric(7, 1, Better::kNone)), Verdict::kDiffers);
  EXPECT_EQ(separate_intervals(a, metric(20, 1, Better::kHigher, 1)), Verdict::kNotTestable);
}

TEST(Formatting, TheIntervalDecidesTheDecimals) {
  EXPECT_EQ(format_metric(metric(412.345, 8.12, Better::kNone)), "412.3 ± 8.1");
  EXPECT_EQ(format_metric(metric(12345.6, 120, Better::kNone)), "12,346 ± 120");
  EXPECT_EQ(format_metric(metric(0.97351, 0.00042, Better::kNone)), "0.97351 ± 0.00042");
  EXPECT_EQ(format_metric(metric(7, 0, Better::kNone)), "7");
  EXPECT_EQ(format_metric(metric(7.125, 0, Better::kNone, 1)), "7.12");
  Metric bytes = metric(3 * 1073741824.0, 107374182.4, Better::kLower);
  bytes.unit = "B";
  EXPECT_EQ(format_metric(bytes), "3.00 ± 0.10 GiB");
}

TEST(Lines, JoinPointsThatDifferInOneAxisAlone) {
  const auto experiment = load_experiment(fixture());
  ASSERT_TRUE(experiment) << experiment.error().message;
  const std::vector<Group> groups = groups_of(experiment->points);
  ASSERT_EQ(groups.size(), 4U);
  EXPECT_EQ(varied_axes(groups[0].points), (std::vector<std::string>{"policy", "concurrency"}));
  const auto lines = lines_along(groups[0].points, "concurrency");
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0].name, "continuous");
  ASSERT_EQ(lines[0].points.size(), 4U);
  EXPECT_EQ(lines[0].points.back()->axis("concurrency")->number, 64);
  EXPECT_EQ(load_axis(groups[0].points), "concurrency");
}

// A chart over the whole experiment meets several grids with the same axis.
TEST(Lines, KeepGridsApart) {
  std::vector<Point> points(4);
  for (size_t i = 0; i < 4; ++i) {
    points[i].grid = i < 2 ? "short" : "long";
    points[i].axes = {{"concurrency", {std::to_string(i % 2 + 1), static_cast<double>(i % 2 + 1)}}};
    points[i].metrics["output_throughput"] = metric(100, 1, Better::kHigher);
  }
  points[3].axes.push_back({"policy", {"serial", kNoValue}});
  PointList list;
  for (const Point& point : points) list.push_back(&point);
  const auto lines = lines_along(list, "concurrency");
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0].name, "short");
  EXPECT_EQ(lines[1].name, "long");
  // Of the points that have the axis of the series.
  const auto chart = metric_chart(list, {"", "concurrency", "output_throughput", "policy", {}, {}});
  ASSERT_TRUE(chart);
  EXPECT_EQ(std::get<plot::XyChart>(chart->body).series.size(), 1U);
  EXPECT_FALSE(metric_chart(list, {"", "concurrency", "output_throughput", "nothing", {}, {}}));
}

TEST(Charts, ComeFromWhatWasMeasured) {
  const auto experiment = load_experiment(fixture());
  ASSERT_TRUE(experiment);
  std::vector<std::string> missing;
  std::set<std::string> ids;
  for (const plot::Chart& chart : charts_of(*experiment, missing)) EXPECT_TRUE(ids.insert(chart.id).second);
  for (const char* id :
       {"prompt-speed-against-context", "top-token-kept", "time-to-the-first-token-against-concurrency",
        "time-per-output-token-against-concurrency", "latency-against-throughput",
        "distribution-of-the-time-to-the-first-token", "distribution-of-the-time-per-output-token",
        "memory-over-time", "requests-over-time", "life-of-the-requests", "memory-against-context",
        "memory-plan-by-part", "quality-against-size", "quality-against-speed"}) {
    EXPECT_TRUE(ids.contains(id)) << id;
  }
  ASSERT_EQ(missing.size(), 1U);
  EXPECT_NE(missing[0].find("joules_per_token"), std::string::npos);
}

TEST(Charts, LongRunsAreBounded) {
  Experiment experiment;
  Point point;
  point.id = point.label = "p";
  point.grid = point.measure = "serve";
  Repeat repeat;
  for (int i = 0; i < 5000; ++i) {
    TimelineSample sample;
    sample.t = i * 0.1;
    sample.running = i % 7;
    sample.waiting = i == 2500 ? 99 : 0;
    repeat.measurement.timeline.push_back(sample);
    Request request;
    request.index = i;
    request.sent = i * 0.1;
    request.first_content = request.sent + 1;
    request.last_content = request.end = request.sent + 2;
    request.completion_tokens = 5;
    repeat.measurement.requests.push_back(request);
    repeat.measurement.ttft.push_back(1 + i * 1e-3);
  }
  point.repeats.push_back(repeat);
  experiment.points.push_back(point);
  std::vector<std::string> missing;
  const auto charts = charts_of(experiment, missing);
  ASSERT_FALSE(charts.empty());
  bool gantt = false;
  for (const plot::Chart& chart : charts) {
    EXPECT_LT(plot::render_svg(chart, {}).size(), 60'000U) << chart.id;
    if (const auto* rows = std::get_if<plot::Gantt>(&chart.body)) {
      gantt = true;
      EXPECT_EQ(rows->rows.size(), 60U);
      EXPECT_NE(chart.note.find("first 60 of 5000"), std::string::npos) << chart.note;
    }
    if (chart.id != "requests-over-time") continue;
    // A peak of one sample is still there.
    double most = 0;
    for (const auto& s : std::get<plot::XyChart>(chart.body).series.back().samples)
      most = std::max(most, s.y);
    EXPECT_EQ(most, 99);
  }
  EXPECT_TRUE(gantt);
}

// The numbers of <data value="..."> in the table row that starts with the point's id.
std::vector<double> row_values(const std::string& html, const std::string& id) {
  const size_t begin = html.find("<tr><td class=\"soft\">" + id + "</td>");
  if (begin == std::string::npos) return {};
  const std::string row = html.substr(begin, html.find("</tr>", begin) - begin);
  std::vector<double> values;
  constexpr std::string_view kStart = "<data value=\"";
  for (size_t at = row.find(kStart); at != std::string::npos; at = row.find(kStart, at + 1)) {
    values.push_back(std::stod(row.substr(at + kStart.size())));
  }
  return values;
}

TEST(Html, HasTheSummarysNumbers) {
  const auto experiment = load_experiment(fixture());
  ASSERT_TRUE(experiment);
  const std::string html = to_html(make_document(*experiment));
  const json::value summary = json::parse(read(fixture() / "summary.json"));
  int checked = 0;
  for (const json::value& point : summary.at("points").as_array()) {
    const json::object& metrics = point.at("metrics").as_object();
    const std::vector<double> values = row_values(html, std::string(point.at("id").as_string()));
    for (const char* name :
         {"output_throughput", "p99_ttft_ms", "decode_tokens_per_second.median", "mean_kl", "bytes.total"}) {
      if (!metrics.contains(name)) continue;
      const double mean = metrics.at(name).at("mean").to_number<double>();
      EXPECT_NE(std::find(values.begin(), values.end(), mean), values.end())
          << point.at("id") << " lacks " << name;
      ++checked;
    }
  }
  EXPECT_EQ(checked, 6 * 2 + 9 + 3 + 4);
}

TEST(Html, IsOneFileThatAsksForNothing) {
  const auto experiment = load_experiment(fixture());
  ASSERT_TRUE(experiment);
  const std::string html = to_html(make_document(*experiment));
  for (const char* reference :
       {"<script", "<link rel=\"stylesheet", "src=", "url(", "@import", "http-equiv"}) {
    EXPECT_EQ(html.find(reference), std::string::npos) << reference;
  }
  EXPECT_NE(html.find("This run was interrupted"), std::string::npos);
  EXPECT_NE(html.find("&lt;the server&gt; closed the connection &amp; left"), std::string::npos);
  EXPECT_NE(html.find("request failed: timeout"), std::string::npos);
  EXPECT_NE(html.find("does not fit"), std::string::npos);
  EXPECT_LT(html.size(), 600'000U);
}

TEST_F(BrokenCopy, ReportsAreWrittenWithTheirPlots) {
  const fs::path html = folder_ / "out/my.html";
  fs::create_directories(html.parent_path());
  const Status status = write_report(folder_, html);
  ASSERT_TRUE(status) << status.error().message;
  const std::string markdown = read(folder_ / "out/my.md");
  EXPECT_NE(markdown.find("&lt;the server> closed the connection &amp; left"), std::string::npos);
  int plots = 0;
  constexpr std::string_view kStart = "](plots/";
  for (size_t at = markdown.find(kStart); at != std::string::npos; at = markdown.find(kStart, at + 1)) {
    const size_t name = at + 2;
    const fs::path file = folder_ / "out" / markdown.substr(name, markdown.find(')', name) - name);
    ASSERT_TRUE(fs::exists(file)) << file;
    std::istringstream in(read(file));
    boost::property_tree::ptree tree;
    EXPECT_NO_THROW(boost::property_tree::read_xml(in, tree)) << file;
    ++plots;
  }
  EXPECT_GE(plots, 14);
}

TEST_F(BrokenCopy, ResultsThatAreNotThereAreMissing) {
  fs::remove(folder_ / "points/p001/r1.json");
  const auto experiment = load_experiment(folder_);
  ASSERT_TRUE(experiment) << experiment.error().message;
  EXPECT_EQ(experiment->points[0].repeats[0].status, RepeatStatus::kMissing);
  EXPECT_NE(to_html(make_document(*experiment)).find("result missing"), std::string::npos);
}

TEST_F(BrokenCopy, APointWithoutResultsIsShown) {
  write("summary.json", R"({"points":[]})");
  fs::remove_all(folder_ / "points");
  const auto experiment = load_experiment(folder_);
  ASSERT_TRUE(experiment) << experiment.error().message;
  const std::string html = to_html(make_document(*experiment));
  EXPECT_NE(html.find(">missing</td>"), std::string::npos);
}

TEST_F(BrokenCopy, NoPointsAtAll) {
  write("manifest.json", R"({"schema":"qwen2-experiment/1","name":"n","points":[]})");
  write("summary.json", R"({"points":[]})");
  const auto experiment = load_experiment(folder_);
  ASSERT_TRUE(experiment) << experiment.error().message;
  EXPECT_NE(to_html(make_document(*experiment)).find("Nothing was measured"), std::string::npos);
  EXPECT_FALSE(to_markdown(make_document(*experiment)).empty());
}

TEST_F(BrokenCopy, TheEnginesOwnPeakIsNotHeldAgainstItsPlan) {
  write("engine.json", R"({"peak_memory_bytes":900,"memory_plan":{"weights":100,"budget":1000}})");
  const auto engine = load_measurement(folder_ / "engine.json", "engine");
  ASSERT_TRUE(engine) << engine.error().message;
  EXPECT_EQ(engine->plan->total, 100);
  EXPECT_TRUE(std::isnan(engine->memory_bytes));
  write("engine.json",
        R"({"peak_memory_bytes":900,"device_memory_bytes":120,"memory_plan":{"weights":100}})");
  EXPECT_EQ(load_measurement(folder_ / "engine.json", "engine")->memory_bytes, 120);
}

TEST_F(BrokenCopy, ErrorsNameFileAndField) {
  replace("manifest.json", "\"id\": \"p002\"", "\"id\": 2");
  expect_error({"manifest.json", "points[1].id", "a string"});
}
TEST_F(BrokenCopy, AnUnknownSchemaIsRefused) {
  replace("manifest.json", "qwen2-experiment/1", "qwen2-experiment/9");
  expect_error({"manifest.json", "schema", "qwen2-experiment/1"});
}
TEST_F(BrokenCopy, StatusesAreKnown) {
  replace("manifest.json", "\"status\": \"ok\"", "\"status\": \"fine\"");
  expect_error({"manifest.json", "points[0].repeats[0].status", "fine"});
}
TEST_F(BrokenCopy, FilesStayInside) {
  replace("manifest.json", "points/p001/r1.json", "../p001/r1.json");
  expect_error({"manifest.json", "points[0].repeats[0].file", "inside"});
}
TEST_F(BrokenCopy, SummariesNeedMeans) {
  replace("summary.json", "\"mean\"", "\"men\"");
  expect_error({"summary.json", "points[0].metrics.output_throughput.mean", "a number"});
}
TEST_F(BrokenCopy, TheSummarysPointsAreTheManifests) {
  replace("summary.json", "\"p003\"", "\"p999\"");
  expect_error({"summary.json", "p999"});
}
TEST_F(BrokenCopy, HalfAFileIsNamed) {
  write("points/p002/r2.json", R"({"ttfts": [0.1,)");
  expect_error({"points/p002/r2.json", "not valid JSON"});
}
TEST_F(BrokenCopy, ResultsAreChecked) {
  replace("points/p001/r1.json", "\"ttfts\":[", "\"ttfts\":[null,");
  expect_error({"points/p001/r1.json", "ttfts[0]", "a number"});
}
TEST_F(BrokenCopy, LinesOfRequestsAreNamed) {
  replace("points/p001/r1.requests.jsonl", "\"index\": 1,", "\"index\": 1.5,");
  expect_error({"r1.requests.jsonl", "line 2", "index", "an integer", "1.5"});
}
TEST_F(BrokenCopy, AManifestMustBeThere) {
  fs::remove(folder_ / "manifest.json");
  expect_error({"manifest.json"});
}

}  // namespace
}  // namespace qwen2::report
