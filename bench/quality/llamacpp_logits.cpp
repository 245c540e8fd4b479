// llama.cpp's logits of given tokens, as a numpy file: the other engine in compare.py's table.
//
//   llamacpp_logits MODEL.gguf IDS.json OUT.npy [FLASH_ATTENTION 0|1] [THREADS]
//
// IDS.json is a list of token ids. OUT.npy is float32 [tokens, vocabulary], teacher-forced from position 0, with an
// f16 cache and batches of 512. How to build it stands in README.md.
#include "llama.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

static constexpr int BATCH = 512;

static std::vector<llama_token> read_ids(const char * path) {
    std::ifstream in(path);
    std::string text((std::istreambuf_iterator<char>(in)), {});
    for (char & c : text) {
        if (c < '0' || c > '9') c = ' ';
    }
    std::vector<llama_token> ids;
    char * at = text.data();
    for (char * end = nullptr;; at = end) {
        long id = std::strtol(at, &end, 10);
        if (end == at) return ids;
        ids.push_back((llama_token) id);
    }
}

// The header of a numpy file, padded to a multiple of 64 bytes.
static void write_header(FILE * out, size_t rows, int columns) {
    char text[128];
    std::snprintf(text, sizeof text, "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %d), }", rows, columns);
    std::string header(text);
    header.resize((header.size() + 11 + 63) / 64 * 64 - 11, ' ');
    header += '\n';
    const unsigned short length = (unsigned short) header.size();
    std::fwrite("\x93NUMPY\x01\x00", 1, 8, out);
    std::fwrite(&length, 2, 1, out);
    std::fwrite(header.data(), 1, header.size(), out);
}

int main(int argc, char ** argv) {
    if (argc < 4) {
        std::fprintf(stderr, "usage: llamacpp_logits MODEL.gguf IDS.json OUT.npy [FLASH_ATTENTION 0|1] [THREADS]\n");
        return 2;
    }
    const bool flash = argc > 4 && std::atoi(argv[4]);
    const int threads = argc > 5 ? std::atoi(argv[5]) : 2;
    const std::vector<llama_token> ids = read_ids(argv[2]);

    llama_backend_init();
    llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = (unsigned) (ids.size() + 255) / 256 * 256;
    params.n_batch = params.n_ubatch = BATCH;
    params.n_threads = params.n_threads_batch = threads;
    params.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * context = model ? llama_init_from_model(model, params) : nullptr;
    FILE * out = std::fopen(argv[3], "wb");
    if (!context || !out || ids.empty()) {
        std::fprintf(stderr, "cannot load the model, read the ids or write the result\n");
        return 1;
    }

    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    write_header(out, ids.size(), vocabulary);
    llama_batch batch = llama_batch_init(BATCH, 0, 1);
    for (size_t start = 0; start < ids.size(); start += BATCH) {
        batch.n_tokens = (int) std::min<size_t>(BATCH, ids.size() - start);
        for (int i = 0; i < batch.n_tokens; i++) {
            batch.token[i] = ids[start + i];
            batch.pos[i] = (llama_pos) (start + i);
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        if (llama_decode(context, batch)) {
            std::fprintf(stderr, "llama_decode failed at token %zu\n", start);
            return 1;
        }
        for (int i = 0; i < batch.n_tokens; i++) {
            std::fwrite(llama_get_logits_ith(context, i), sizeof(float), (size_t) vocabulary, out);
        }
    }
    return std::fclose(out) ? 1 : 0;
}
