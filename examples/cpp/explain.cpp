// Prints what a classifier sees in a picture, and paints where it sees it, in one forward pass.
//
// The model is a file of `onnxplain export SOURCE -o MODEL.onnx --heatmap gradcam --pixels`. It takes the
// picture's pixels as they are and returns logits and heatmaps: resizing, normalising and gradients are nodes
// of its graph.

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

namespace fs = std::filesystem;

namespace {

const char* const USAGE =
    "Usage: explain MODEL.onnx PICTURE OVERLAY.png [--top K] [--heatmap FILE.tiff] [--repeat N]\n"
    "\n"
    "Prints the most likely classes (index, probability, label), and writes the picture with the heatmap\n"
    "of the first laid over it.\n"
    "\n"
    "  --top K              explain the K most likely classes, side by side (default 1)\n"
    "  --heatmap FILE.tiff  write the heatmap itself too, float32 in [0, 1]\n"
    "  --repeat N           then do it all N times more, and print the median times\n";

struct WrongCall : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// ---- The model: load_model, run and read_outputs are all that it takes to use one

struct Model {
    Ort::Session session;
    std::vector<std::string> labels;  // one a class, or none at all
    std::string activation;           // what turns logits into probabilities: softmax, sigmoid or none
    std::int64_t classes;             // how many; -1 where the file leaves it open
};

Model load_model(const Ort::Env& env, const fs::path& path) try {
    if (!fs::exists(path)) throw Failure("there is no such file");
    Ort::Session session(env, path.c_str(), Ort::SessionOptions());
    Ort::AllocatorWithDefaultOptions allocator;
    const auto metadata = session.GetModelMetadata();
    const auto text = metadata.LookupCustomMetadataMapAllocated("onnxplain.manifest", allocator);
    const auto manifest = text ? nlohmann::json::parse(text.get()) : nlohmann::json::object();
    if (manifest.value("schema", 1) > 1) {
        throw Failure("a newer onnxplain wrote it, and this program reads schema 1");
    }
    if (!manifest.value("pixels", false) || !manifest.contains("heatmap")) {
        throw Failure("it doesn't take pixels and return heatmaps; export the network again: "
                      "onnxplain export SOURCE -o OUT.onnx --heatmap gradcam --pixels");
    }
    std::vector<std::string> labels;
    if (!manifest.at("labels").is_null()) manifest.at("labels").get_to(labels);
    std::int64_t classes = -1;
    for (std::size_t i = 0; i < session.GetOutputCount(); ++i) {
        if (session.GetOutputNameAllocated(i, allocator).get() != std::string("logits")) continue;
        const auto shape = session.GetOutputTypeInfo(i).GetTensorTypeAndShapeInfo().GetShape();
        if (shape.size() == 2) classes = shape[1];
    }
    return {std::move(session), labels, manifest.at("activation"), classes};
} catch (const std::exception& error) {
    throw Failure("can't use " + path.string() + ": " + error.what());
}

// Runs the model on a picture in RGB, 8 bits a channel, of any size.
std::vector<Ort::Value> run(Model& model, cv::Mat& rgb, int top) {
    if (rgb.type() != CV_8UC3 || !rgb.isContinuous()) throw Failure("the pixels must be 8-bit RGB, row after row");
    std::vector<std::int64_t> ranks(top);  // -1 is the most likely class, -2 the next
    std::generate(ranks.begin(), ranks.end(), [rank = 0]() mutable { return --rank; });
    const std::array<std::int64_t, 4> image_shape{1, rgb.rows, rgb.cols, 3};
    const std::array<std::int64_t, 2> ranks_shape{1, top};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const std::array<Ort::Value, 2> inputs{
        Ort::Value::CreateTensor<std::uint8_t>(memory, rgb.data, rgb.total() * 3, image_shape.data(), 4),
        Ort::Value::CreateTensor<std::int64_t>(memory, ranks.data(), ranks.size(), ranks_shape.data(), 2)};
    const std::array<const char*, 2> input_names{"image", "class_index"};
    const std::array<const char*, 2> output_names{"logits", "heatmap"};
    return model.session.Run(Ort::RunOptions(), input_names.data(), inputs.data(), inputs.size(),
                             output_names.data(), output_names.size());
}

struct Answer {
    std::vector<float> logits;      // one a class
    std::vector<cv::Mat> heatmaps;  // the most likely class's first: float32, as large as the picture
};

// Returns an output's numbers. Files come from anywhere: this one may not be what its manifest says.
float* numbers(Ort::Value& output, const std::vector<std::int64_t>& shape) {
    const auto info = output.GetTensorTypeAndShapeInfo();
    if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || info.GetShape() != shape) {
        throw Failure("the model's outputs aren't those of an explainer; export it again");
    }
    float* values = output.GetTensorMutableData<float>();
    const auto is_finite = [](float value) { return std::isfinite(value); };
    if (!std::all_of(values, values + info.GetElementCount(), is_finite)) {
        throw Failure("the model's outputs are NaN or infinite, so there is nothing to explain");
    }
    return values;
}

Answer read_outputs(std::vector<Ort::Value>& outputs, cv::Size size, int top) {
    const std::int64_t classes = outputs[0].GetTensorTypeAndShapeInfo().GetElementCount();
    if (top > classes) throw Failure("the model has only " + std::to_string(classes) + " classes");
    const float* logits = numbers(outputs[0], {1, classes});
    float* heat = numbers(outputs[1], {1, top, size.height, size.width});
    Answer answer{{logits, logits + classes}, {}};
    for (int rank = 0; rank < top; ++rank) {
        answer.heatmaps.push_back(cv::Mat(size, CV_32F, heat + rank * std::size_t(size.area())).clone());
    }
    return answer;
}

std::vector<double> probabilities(const std::vector<float>& logits, const std::string& activation) {
    std::vector<double> scores(logits.begin(), logits.end());
    if (activation == "softmax") {
        const double largest = *std::max_element(scores.begin(), scores.end());
        for (double& score : scores) score = std::exp(score - largest);
        const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
        for (double& score : scores) score /= sum;
    } else if (activation == "sigmoid") {
        for (double& score : scores) score = 1 / (1 + std::exp(-score));
    }
    return scores;
}

// Returns a line for each of the most likely classes.
std::string table(const Model& model, const std::vector<float>& logits, std::size_t rows) {
    std::vector<std::size_t> classes(logits.size());
    std::iota(classes.begin(), classes.end(), 0);
    std::stable_sort(classes.begin(), classes.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
    classes.resize(std::min(rows, classes.size()));
    const auto scores = probabilities(logits, model.activation);
    std::ostringstream lines;
    lines << std::fixed << std::setprecision(4);
    for (const auto index : classes) {
        lines << std::setw(6) << index << std::setw(9) << scores[index] << "  "
              << (index < model.labels.size() ? model.labels[index] : "") << '\n';
    }
    return lines.str();
}

// ---- Pictures

std::vector<uchar> read_file(const fs::path& path) {
    std::error_code error;
    std::vector<uchar> bytes(fs::is_regular_file(path, error) ? fs::file_size(path, error) : 0);
    std::ifstream file(path, std::ios::binary);
    if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) {
        throw Failure("can't read " + path.string() + ": " + std::generic_category().message(errno));
    }
    if (bytes.empty()) throw Failure("can't read " + path.string() + ": it is empty, or no file");
    return bytes;
}

// Writes beside the file, then moves it into place, so that nothing half-written is left.
void write_file(const fs::path& path, const std::vector<uchar>& bytes) {
    const fs::path aside = path.string() + "." + std::to_string(std::random_device{}()) + ".part";
    std::ofstream file(aside, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    file.close();
    std::error_code error(file ? 0 : errno ? errno : EIO, std::generic_category());
    if (!error) fs::rename(aside, path, error);
    if (error) {
        std::error_code ignored;
        fs::remove(aside, ignored);
        throw Failure("can't write " + path.string() + ": " + error.message());
    }
}

// Says whether the end of a JPEG is missing. OpenCV fills what is missing with grey and says nothing.
bool is_cut_off(const std::vector<uchar>& jpeg) {
    const auto byte = [&](std::size_t place) { return place < jpeg.size() ? jpeg[place] : 0; };
    for (std::size_t at = 2; at < jpeg.size();) {
        const int marker = byte(at) == 0xff ? byte(at + 1) : 0;
        if (marker == 0xd9) return false;
        const bool is_segment = marker != 0 && marker != 0xff && (marker < 0xd0 || marker > 0xd7);
        at += is_segment ? 2 + 256 * byte(at + 2) + byte(at + 3) : 1;
    }
    return true;
}

// Lays a transparent picture over white.
cv::Mat over_white(const cv::Mat& bgra) {
    cv::Mat pixels;
    bgra.convertTo(pixels, CV_32F, bgra.depth() == CV_16U ? 1 / 257.0 : 1);
    std::vector<cv::Mat> planes;
    cv::split(pixels, planes);
    const cv::Mat alpha = planes[3];
    planes.pop_back();
    for (cv::Mat& plane : planes) plane = plane.mul(alpha, 1 / 255.0) + (255 - alpha);
    cv::merge(planes, pixels);
    pixels.convertTo(pixels, CV_8U);
    return pixels;
}

// Returns a picture as a viewer would show it, turned as EXIF says and over white: BGR, 8 bits a channel.
cv::Mat decode(const std::vector<uchar>& bytes) {
    const bool is_jpeg = bytes.size() > 2 && bytes[0] == 0xff && bytes[1] == 0xd8;
    if (is_jpeg && is_cut_off(bytes)) return {};
    cv::Mat picture = cv::imdecode(bytes, cv::IMREAD_COLOR | cv::IMREAD_ANYDEPTH);  // this turns it
    if (!is_jpeg && !picture.empty()) {
        const cv::Mat unchanged = cv::imdecode(bytes, cv::IMREAD_UNCHANGED);
        if (unchanged.channels() == 4) return over_white(unchanged);
    }
    if (picture.depth() == CV_16U) picture.convertTo(picture, CV_8U, 1 / 257.0);
    return picture;
}

cv::Mat read_picture(const fs::path& path) {
    const auto bytes = read_file(path);
    cv::Mat picture;
    try {
        picture = decode(bytes);
    } catch (const cv::Exception&) {  // it is damaged, or larger than OpenCV takes
    }
    if (picture.empty() || picture.depth() != CV_8U) {
        throw Failure("can't read " + path.string() + ": it is damaged, or no picture of 8 or 16 bits");
    }
    return picture;
}

// Blends a heatmap's colours into a picture, the more the hotter.
cv::Mat overlay(const cv::Mat& picture, const cv::Mat& heatmap) {
    cv::Mat levels, colours, blended;
    cv::convertScaleAbs(heatmap, levels, 255);
    cv::applyColorMap(levels, colours, cv::COLORMAP_INFERNO);
    const cv::Mat weight = 0.8 * heatmap;
    cv::blendLinear(picture, colours, 1 - weight, weight, blended);
    return blended;
}

std::vector<uchar> encode(const std::string& extension, const std::vector<cv::Mat>& panels) {
    cv::Mat row;
    cv::hconcat(panels, row);
    std::vector<uchar> bytes;
    if (!cv::imencode(extension, row, bytes)) throw Failure("OpenCV can't encode it as " + extension);
    return bytes;
}

// ---- The program

struct Arguments {
    fs::path model, picture, overlay, heatmap;
    int top = 1;
    int repeat = 0;
};

int whole_number(const std::string& text, const std::string& option) {
    int number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size() || number < 1) {
        throw WrongCall(option + " must be a whole number of at least 1, not '" + text + "'");
    }
    return number;
}

Arguments read_arguments(const std::vector<std::string>& words) {
    Arguments arguments;
    std::vector<std::string> files;
    for (std::size_t i = 0; i < words.size(); ++i) {
        const std::string& word = words[i];
        if (word.substr(0, 2) != "--") {
            files.push_back(word);
        } else if (word != "--top" && word != "--repeat" && word != "--heatmap") {
            throw WrongCall("there is no option " + word);
        } else if (++i == words.size()) {
            throw WrongCall(word + " lacks its value");
        } else if (word == "--top") {
            arguments.top = whole_number(words[i], word);
        } else if (word == "--repeat") {
            arguments.repeat = whole_number(words[i], word);
        } else {
            arguments.heatmap = words[i];
        }
    }
    if (files.size() != 3) throw WrongCall("it takes MODEL.onnx PICTURE OVERLAY.png");
    arguments.model = files[0];
    arguments.picture = files[1];
    arguments.overlay = files[2];
    if (!cv::haveImageWriter(arguments.overlay.string())) {
        throw WrongCall("OpenCV can't write pictures of the kind of " + files[2] + "; name it .png");
    }
    const auto extension = arguments.heatmap.extension();
    if (!arguments.heatmap.empty() && extension != ".tiff" && extension != ".tif") {
        throw WrongCall("the heatmap is written as TIFF; name it .tiff, not " + arguments.heatmap.string());
    }
    return arguments;
}

// Milliseconds that each step took; `own` is what this program does itself between decoding and writing.
struct Times {
    double decode = 0, session = 0, own = 0, write = 0;
};

class Stopwatch {
public:
    double lap() {  // milliseconds since the lap before
        const auto before = std::exchange(start_, std::chrono::steady_clock::now());
        return std::chrono::duration<double, std::milli>(start_ - before).count();
    }

private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::string medians(const std::vector<Times>& all) {
    const auto median = [&](double Times::*step) {
        std::vector<double> values;
        for (const Times& times : all) values.push_back(times.*step);
        std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
        return values[values.size() / 2];
    };
    std::ostringstream line;
    line << std::fixed << std::setprecision(2) << "milliseconds: decode " << median(&Times::decode)
         << ", session " << median(&Times::session) << ", own " << median(&Times::own) << ", write "
         << median(&Times::write) << '\n';
    return line.str();
}

// Explains a picture once; returns what is to be printed of it.
std::string explain(Model& model, const Arguments& arguments, Times& times) {
    Stopwatch watch;
    const cv::Mat picture = read_picture(arguments.picture);
    times.decode = watch.lap();

    cv::Mat rgb;
    cv::cvtColor(picture, rgb, cv::COLOR_BGR2RGB);
    times.own = watch.lap();

    auto outputs = run(model, rgb, arguments.top);
    times.session = watch.lap();

    const Answer answer = read_outputs(outputs, picture.size(), arguments.top);
    std::vector<cv::Mat> overlays;
    for (const cv::Mat& heatmap : answer.heatmaps) overlays.push_back(overlay(picture, heatmap));
    const std::string classes = table(model, answer.logits, std::max(5, arguments.top));
    times.own += watch.lap();

    write_file(arguments.overlay, encode(arguments.overlay.extension().string(), overlays));
    if (!arguments.heatmap.empty()) write_file(arguments.heatmap, encode(".tiff", answer.heatmaps));
    times.write = watch.lap();
    return classes;
}

// Debian 13's onnxruntime writes hundreds of lines to std::cerr when it loads a model, all of no account.
struct Quiet {
    Quiet() { std::cerr.setstate(std::ios::failbit); }
    ~Quiet() { std::cerr.clear(); }
};

Model load_quietly(const Ort::Env& env, const fs::path& path) {
    const Quiet quiet;
    return load_model(env, path);
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> words(argv + 1, argv + argc);
    try {
        if (std::count(words.begin(), words.end(), "--help")) {
            std::cout << USAGE;
            return 0;
        }
        const Arguments arguments = read_arguments(words);
        if (!OrtGetApiBase()->GetApi(ORT_API_VERSION)) {
            throw Failure("the onnxruntime library is older than the headers that this was built with");
        }
        const Ort::Env env(ORT_LOGGING_LEVEL_FATAL);  // its errors are thrown, and need not be logged too
        Model model = load_quietly(env, arguments.model);
        if (model.classes >= 0 && arguments.top > model.classes) {
            throw Failure("--top must be at most " + std::to_string(model.classes) + ", all the classes");
        }
        Times times;
        std::cout << explain(model, arguments, times);
        std::vector<Times> all(arguments.repeat);
        for (Times& once : all) explain(model, arguments, once);
        if (!all.empty()) std::cout << medians(all);
        if (!std::cout.flush()) throw Failure("can't write to the standard output");
        return 0;
    } catch (const WrongCall& error) {
        std::cerr << "explain: " << error.what() << " (see explain --help)\n";
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "explain: " << first_line(error.what()) << '\n';
        return 1;
    }
}
