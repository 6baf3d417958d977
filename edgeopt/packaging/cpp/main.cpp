// Classifies prepared pictures with the engine of this package.
//
//   ./classify PACKAGE PICTURE.ppm...
//
// A picture is a binary PPM (P6) of the model's height and width: `python predict.py --prepare FOLDER PICTURE...` writes
// such, and an application makes its own from a camera's frames. Prints path, label and probability, tab-separated.

#include <openvino/openvino.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "model.hpp"  // written with the package: engine, its input, size, mean, deviation, temperature

namespace {

std::vector<std::uint8_t> read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    std::size_t width = 0, height = 0, white = 0;
    file >> magic >> width >> height >> white;
    file.get();
    if (!file || magic != "P6" || white != 255 || width != model::width || height != model::height)
        throw std::runtime_error(path + " is not a binary PPM of " + std::to_string(model::width) + "x" +
                                 std::to_string(model::height) + " pixels");
    std::vector<std::uint8_t> pixels(3 * width * height);
    file.read(reinterpret_cast<char*>(pixels.data()), static_cast<std::streamsize>(pixels.size()));
    if (!file) throw std::runtime_error(path + " is cut off");
    return pixels;
}

std::vector<std::string> read_labels(const std::string& path) {
    std::ifstream file(path);
    std::vector<std::string> labels;
    for (std::string line; std::getline(file, line);) labels.push_back(line);
    return labels;
}

// The first picture of the input: normalized as edgeopt.pixels.normalize does, channels first. Others stay zero.
void fill(float* input, const std::vector<std::uint8_t>& pixels) {
    const std::size_t plane = model::height * model::width;
    for (std::size_t channel = 0; channel < 3; ++channel)
        for (std::size_t i = 0; i < plane; ++i)
            input[channel * plane + i] = pixels[3 * i + channel] * model::scale[channel] + model::offset[channel];
}

double probability(const float* logits, std::size_t classes, std::size_t best) {
    double sum = 0;
    for (std::size_t i = 0; i < classes; ++i)
        sum += std::exp((static_cast<double>(logits[i]) - logits[best]) / model::temperature);
    return 1 / sum;
}

void classify(const std::string& package, const std::vector<std::string>& pictures) {
    const auto labels = read_labels(package + "/labels.txt");
    ov::Core core;
    auto network = core.read_model(package + "/" + model::engine);
    auto shape = network->input().get_partial_shape();
    shape[0] = model::batch;  // a fixed shape is fastest
    network->reshape(shape);
    ov::AnyMap properties(model::properties.begin(), model::properties.end());
    auto request = core.compile_model(network, model::device, properties).create_infer_request();
    auto input = request.get_input_tensor();
    std::memset(input.data(), 0, input.get_byte_size());
    for (const auto& path : pictures) {
        const auto pixels = read_ppm(path);
        if (model::embedded_preprocessing)  // the engine takes them as they are
            std::copy(pixels.begin(), pixels.end(), input.data<std::uint8_t>());
        else
            fill(input.data<float>(), pixels);
        request.infer();
        const auto* logits = request.get_output_tensor().data<float>();
        const auto best = static_cast<std::size_t>(std::max_element(logits, logits + labels.size()) - logits);
        std::cout << path << '\t' << labels.at(best) << '\t' << probability(logits, labels.size(), best) << '\n';
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::cerr << "usage: classify PACKAGE PICTURE.ppm...\n";
        return 2;
    }
    try {
        classify(argv[1], std::vector<std::string>(argv + 2, argv + argc));
    } catch (const std::exception& error) {
        std::cerr << "classify: " << error.what() << '\n';
        return 1;
    }
    return 0;
}
